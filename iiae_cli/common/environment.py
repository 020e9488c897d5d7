"""Surroundings of the process: default locations, runs on the hub, processor cores and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from iiae_cli.common.errors import IiaeError

_HUB_FILES = ["*.md", "*.yaml", "*.safetensors", "gallery.h5"]


def preset_folder() -> Path:
    """Returns the folder of presets: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Returns the names of the shipped presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def data_folder() -> Path:
    """Returns `IIAE_DATA`, else `data/`."""
    return Path(os.environ.get("IIAE_DATA") or "data")


def data_file(option: Path | None, set_name: str) -> Path:
    """Returns `--data` if it is a file, else SET.h5 in `--data`, `IIAE_DATA` or data/."""
    path = option or data_folder()
    if path.is_file() or (option is not None and not path.is_dir()):
        return path
    if not set_name:
        hint = "pass --data FILE.h5, or set data.set in the preset"
        raise IiaeError("no data file was named", hint)
    return path / f"{set_name}.h5"


def run_folder(option: Path | None) -> tuple[Path, str]:
    """Returns the run to read, downloaded if it is on the hub, and how it was chosen."""
    if option is not None:
        return pulled(option), "--run"
    if named := os.environ.get("IIAE_RUN"):
        return pulled(Path(named)), "IIAE_RUN"
    return Path("runs/latest"), "the latest run"


def index_file(
    option: Path | None, run: Path | None, fits: Callable[[Path], bool]
) -> tuple[Path, str]:
    """Returns the gallery, a latent cache, and how it was chosen."""
    if option is not None:
        return option, "--index"
    if named := os.environ.get("IIAE_INDEX"):
        return Path(named), "IIAE_INDEX"
    caches = [path for path in sorted(Path().glob("*.h5")) if fits(path)]
    if len(caches) == 1:
        return caches[0], "the only cache in this folder that fits"
    gallery = run_folder(run)[0] / "gallery.h5"
    if not gallery.exists():
        hint = "pass --index z.h5, made by: iiae encode PICTURES --domain y -o z.h5"
        raise IiaeError(f"no gallery was named; {gallery} does not exist", hint)
    return gallery, "the run's gallery"


def extra(package: str, name: str) -> ModuleType:
    """Imports an optional package, which the extra of this name installs."""
    try:
        return import_module(package)
    except ImportError as error:
        raise IiaeError(f"{package} is not installed", f"pip install 'iiae-cli[{name}]'") from error


# ---- the Hugging Face Hub: `hf://OWNER/NAME`, by huggingface_hub


@cache
def pulled(path: Path) -> Path:
    """Returns the folder of `hf://OWNER/NAME`, downloaded unless cached; other paths unchanged."""
    kind, name = path.parts[:1], "/".join(path.parts[1:])
    if kind != ("hf:",):  # a path keeps one of the slashes
        return path
    with _hub(f"hf://{name}") as hub:
        return Path(hub.snapshot_download(name, allow_patterns=_HUB_FILES))


def push_to_hub(folder: Path, name: str) -> str:
    """Uploads a folder as the model OWNER/NAME, private if it is new; returns its address."""
    with _hub(f"hf://{name}") as hub:
        api = hub.HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name)
    return f"hf://{name}"


@contextmanager
def _hub(address: str) -> Iterator[ModuleType]:
    """Yields the library; whatever it raises is a user's error."""
    hub = extra("huggingface_hub", "hub")
    try:
        yield hub
    except Exception as error:  # network, model, permission; also the HTTP library's own
        reason = " ".join(str(error).split())[:200]
        hint = "check the name and the network, and log in: hf auth login"
        raise IiaeError(f"{address} cannot be reached: {reason}", hint) from error


# ---- the machine


def cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the number of cores that affinity and cgroup quotas (v2) allow this process.

    A quota of 2.5 cores counts as 2: a third thread would be stopped while the others wait for it.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on a Mac
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    paths = {""}
    with suppress(OSError):
        paths |= {line.split(":", 2)[2] for line in own.read_text("utf-8").splitlines()}
    for path in paths:
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):  # a quota applies to everything below it
            with suppress(OSError, ValueError):  # no quota: no file, or "max"
                quota, period = map(int, (cgroups / folder / "cpu.max").read_text("utf-8").split())
                count = min(count, quota // period)
    return max(count, 1)


def free_memory() -> int:
    """Returns the bytes of memory free without swapping; all memory if the system is not Linux."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
