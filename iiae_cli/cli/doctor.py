"""`iiae doctor`: what this machine offers, and whether the parts that `iiae` needs work."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from iiae_cli import __version__
from iiae_cli.cli import options as shared
from iiae_cli.cli.options import finish
from iiae_cli.common import console
from iiae_cli.common.environment import cores, data_folder
from iiae_cli.common.errors import IiaeError

# The modules that commands cannot do without, and the packages that extras bring.
NEEDED = (
    *("torch", "torchvision", "h5py", "sklearn", "scipy", "PIL", "pydantic", "yaml", "safetensors"),
    *("torchmetrics", "matplotlib", "jinja2", "tensorboard", "filelock", "pooch"),
)
EXTRAS = {"faiss": "faiss-cpu", "timm": "timm", "clip": "open_clip_torch", "onnx": "onnxruntime"}
EXTRAS |= {"hub": "huggingface_hub", "wandb": "wandb", "mlflow": "mlflow-skinny"}
# Picture sizes between which `--precision auto` distinguishes.
SIZES = {"features": None, "32x32": (32, 32), "256x256": (256, 256)}


def command(as_json: bool = shared.JSON) -> None:
    """Show versions, extras, devices, cores, number formats, folders and locks.

    Exits with 2 if a required package cannot be imported, or no run can be written.

    \b
    Examples:
      iiae doctor
      iiae doctor --json | jq .devices
      iiae doctor > machine.txt
    """
    versions: dict[str, str] = {"iiae": __version__, "python": sys.version.split()[0]}
    problems = []
    for name in NEEDED:
        try:
            versions[name] = str(getattr(import_module(name), "__version__", "installed"))
        except Exception as error:  # whatever a broken package raises
            problems.append(f"{name} cannot be imported: {' '.join(str(error).split())[:120]}")
    hint = "run: pip install --force-reinstall iiae-cli"
    report: dict[str, Any] = {"versions": versions, "extras": _extras()}
    report |= {} if problems else _devices()
    report["cores"] = {"allowed": cores(), "machine": os.cpu_count()}
    report["folders"] = _folders()
    if report["folders"]["runs"]["writable"] != "yes":
        problems.append(f"no run can be written to {Path('runs').absolute()}")
        hint = "work in a folder that you may write to"
    result = {"schema": "iiae.doctor/1", **report, "problems": problems}
    finish(result, lambda: _show(report), as_json)
    if problems:
        raise IiaeError("; ".join(problems), hint)


def _show(report: dict[str, Any]) -> None:
    rows = []
    for part, items in report.items():
        for name, value in items.items():
            facts = value.items() if isinstance(value, dict) else ()
            text = ", ".join(f"{key} {fact}" for key, fact in facts)
            missing = f"not installed: pip install 'iiae-cli[{name}]'"
            rows.append((part, name, text or value or missing))
    console.print_table(["part", "name", "value"], rows)


def _extras() -> dict[str, str | None]:
    """Returns the version of each extra's package, None if it is not installed."""
    versions = dict[str, str | None]()
    for name, package in EXTRAS.items():
        try:
            versions[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _devices() -> dict[str, Any]:
    """Returns devices by name, and the number format that `--precision auto` takes on each."""
    import torch

    from iiae_cli.builders import choose_device
    from iiae_cli.training.step import choose_precision

    names = {f"cuda:{n}": torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())}
    names |= {"mps": "Apple GPU"} if torch.backends.mps.is_available() else {}
    names["cpu"] = f"{torch.get_num_threads()} threads"
    formats = {
        name: {kind: choose_precision(size, torch.device(name)) for kind, size in SIZES.items()}
        for name in names
    }
    return {"devices": {"auto": str(choose_device("auto")), **names}, "precision": formats}


def _folders() -> dict[str, dict[str, Any]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    paths = {
        "data": data_folder(),
        "runs": Path("runs"),
        "torch cache": Path(os.environ.get("TORCH_HOME") or cache / "torch"),
        "hub cache": Path(os.environ.get("HF_HOME") or cache / "huggingface"),
        "temporary": Path(tempfile.gettempdir()),
        "shared memory": Path("/dev/shm"),
    }
    return {name: _state(path) for name, path in paths.items()}


def _state(path: Path) -> dict[str, Any]:
    """Returns whether a folder exists, and what the nearest existing one above it allows."""
    near = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    state = {"path": str(path), "exists": path.is_dir(), "writable": "yes", "locks": "yes"}
    state["free"] = f"{shutil.disk_usage(near).free / 2**30:.1f} GiB"
    fact = "writable"
    try:
        with tempfile.TemporaryFile(dir=near) as file:
            fact = "locks"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        state[fact] = f"no: {error.strerror}"
    return state
