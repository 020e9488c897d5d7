"""The data sets by name, and where their sources come from: folders, archives, downloads.

No publisher states a checksum. Where others recorded one it stands here with its source; elsewhere
the archive's own SHA-256 goes into the data file, so that two data files can be compared.
"""

from __future__ import annotations

import json
import re
import shlex
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import data_folder, missing, reading, sha256_of, write_errors
from iiae_cli.data.sources.cars import plan_cars
from iiae_cli.data.sources.cdcb import colour_pair, outline_pair, plan_digits, plan_idx, sketch_pair
from iiae_cli.data.sources.classes import plan_classes, plan_sketchy
from iiae_cli.data.sources.moved import plan_moved_digits, plan_quadrants, plan_trifeature
from iiae_cli.data.sources.pairs import plan_pairs, plan_published
from iiae_cli.data.sources.plan import Plan, PrepareOptions

MARKER = ".iiae-archive.json"  # in an unpacked folder: the archive's SHA-256
MAX_BYTES = 64 * 2**30  # that an archive may unpack to
_PLAIN = {".csv": "pairs", ".tsv": "pairs", ".npz": "classes"}  # files that are no archives
_KINDS = "name a folder, a table (.csv, .tsv), features (.npz), or a tar or zip archive"


@dataclass(frozen=True)
class Archive:
    """A published archive and its mirrors in order."""

    file: str
    folders: tuple[str, ...]  # of servers that have it
    md5: str | None = None  # as recorded by others; None: no checksum is known
    wanted: str = ""  # pattern of the entries to unpack


_PIX2PIX = (
    "https://efrosgans.eecs.berkeley.edu/pix2pix/datasets",
    "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets",  # the authors' own
    "https://people.eecs.berkeley.edu/~tinghuiz/projects/pix2pix/datasets",
)
_ANALOGY = ("http://www.scottreed.info/files", "http://www-personal.umich.edu/~reedscot/files")
ARCHIVES: dict[str, Archive] = {
    "facades": Archive("facades.tar.gz", _PIX2PIX),
    "maps": Archive("maps.tar.gz", _PIX2PIX),
    "cars": Archive(
        "nips2015-analogy-data.tar.gz",
        _ANALOGY,
        # github.com/nmichlo/disent, disent/dataset/data/_groundtruth__cars3d.py, "full".
        md5="4e866a7919c1beedf53964e6f7a23686",
        # It holds the other sets of its paper too.
        wanted=r"(^|/)(cars/|car_[^/]*_mesh\.mat$|list\.txt$)",
    ),
}
# Sets whose archives have no address that a program can fetch, and how people get them.
BY_HAND: dict[str, str] = {
    "sketchy": (
        "fetch the Sketchy Database (rendered_256x256.7z) as https://sketchy.eye.gatech.edu says, "
        "the extended photos by the links in github.com/AnjanDutta/sem-pcyc "
        "(download_datasets.sh), unpack both, then run: iiae prepare sketchy SOURCE"
    ),
}

Builder: TypeAlias = Callable[[PrepareOptions], Plan]


BUILDERS: dict[str, Builder] = {
    "digits-cdcb": partial(plan_digits, colour_pair),
    "digits-edge": partial(plan_digits, outline_pair),
    "mnist-cdcb": partial(plan_idx, "MNIST", colour_pair),
    "fashion-cdcb": partial(plan_idx, "Fashion-MNIST", colour_pair),
    "fashion-edges": partial(plan_idx, "Fashion-MNIST", sketch_pair),
    "mnist-quadrants": plan_quadrants,
    "digits-moved": plan_moved_digits,
    "trifeature": plan_trifeature,
    "cars": plan_cars,
    "facades": plan_published,
    "maps": plan_published,
    "pairs": plan_pairs,
    "sketchy": plan_sketchy,
    "classes": plan_classes,
}
_FROM_SOURCE = ("cars", "facades", "maps", "pairs", "sketchy", "classes")  # or from an archive
EMBEDDED = ("digits-cdcb", "digits-edge", "digits-moved", "trifeature")
CLASS_SETS = ("sketchy", "classes")  # stored as features
DOWNLOADED = (*ARCHIVES, "mnist-cdcb", "mnist-quadrants", "fashion-cdcb", "fashion-edges")


def build(name: str, options: PrepareOptions) -> Plan:
    """Plan a data set; an option that does not apply is refused."""
    if name not in BUILDERS:
        own = f"; for your own data: iiae prepare pairs {shlex.quote(name)}"
        own = own if Path(name).exists() else ""
        raise IiaeError(f"unknown data set '{name}'", f"data sets: {', '.join(BUILDERS)}{own}")
    pictures = [known for known in BUILDERS if known not in CLASS_SETS]
    for option, is_given, sets in (
        ("--split", options.split is not None, CLASS_SETS),
        ("--unseen-classes", options.unseen_classes is not None, CLASS_SETS),
        ("--backbone…", options.wants_backbone, [*CLASS_SETS, "pairs"]),
        ("--image-size", options.image_size is not None, pictures),
        ("--side-by-side", options.side_by_side, ["pairs"]),
        ("--same-instance", options.same_instance, ["mnist-quadrants"]),
    ):
        if is_given and name not in sets:
            takers = ", ".join(sets)
            raise IiaeError(
                f"{option} does not apply to {name}", f"leave it out; it is for {takers}"
            )
    if name not in _FROM_SOURCE:
        return BUILDERS[name](options)
    source, attributes = source_of(name, options)
    plan = BUILDERS[name](replace(options, source=source))
    return replace(plan, attributes={**plan.attributes, **attributes})


def how_to_prepare(name: str, path: Path) -> str:
    """The command that makes a set's data file at `path`, and where its source comes from."""
    if name in BY_HAND:
        return f"{BY_HAND[name]} -o {path}"
    if name not in BUILDERS:
        return f"iiae prepare pairs SOURCE -o {path}, or iiae prepare classes SOURCE -o {path}"
    source = "" if name in EMBEDDED else " --download" if name in DOWNLOADED else " SOURCE"
    return f"iiae prepare {name}{source} -o {path}   (see iiae prepare --help)"


# ---- archives


def source_of(name: str, options: PrepareOptions) -> tuple[Path, dict[str, str]]:
    """Find, fetch or unpack a set's source: a folder, table or `.npz`; and its attributes."""
    source, archive = options.source, ARCHIVES.get(name)
    downloads = data_folder() / "downloads"
    origin = str(source and source.absolute())
    if source is None and archive is not None and options.download:
        source = downloads / archive.file
        origin = fetch(archive, source)
    if source is None:
        hint = BY_HAND.get(name, f"iiae prepare {name} SOURCE")
        if archive is not None:
            hint = f"iiae prepare {name} --download, or with what you have: {hint}"
        raise IiaeError(f"the source of {name} was not named", hint)
    if not source.exists():
        raise missing(source, _KINDS)
    source = _features_in(source) if name == "classes" else source
    suffix = source.suffix.lower()
    if source.is_dir() or _PLAIN.get(suffix) == name:
        return source, {"source": origin}
    if suffix in (*_PLAIN, ".xlsx", ".xls", ".ods"):
        own = shlex.join(["iiae", "prepare", _PLAIN.get(suffix, "pairs"), str(source)])
        hint = f"run: {own}" if suffix in _PLAIN else "save it as CSV in UTF-8, columns x,y"
        raise IiaeError(f"{source} is not a source that {name} reads", hint)
    target = downloads / source.name.partition(".")[0]
    sha256 = unpack(source, target, wanted=archive.wanted if archive else "")
    return target, {"source": origin, "source_sha256": sha256}


def _features_in(folder: Path) -> Path:
    """The only `.npz` of a folder that holds no folders; else the folder."""
    files = [*folder.glob("*.npz")]
    folders = any(path.is_dir() for path in folder.glob("*"))
    return files[0] if len(files) == 1 and not folders else folder


def _bar(label: str, stack: ExitStack) -> SimpleNamespace:
    """What pooch reports a download to: progress in MiB, which the stack ends."""
    bar = SimpleNamespace(total=0, done=0, progress=None, reset=lambda: None, close=lambda: None)

    def update(size: int) -> None:
        if bar.progress is None:  # pooch has set the total now
            progress = console.progress(label, bar.total >> 20, "MiB")
            bar.progress = stack.enter_context(progress)
        bar.done = min(bar.done + size, bar.total)
        bar.progress.update(bar.done >> 20)

    bar.update = update
    return bar


def fetch(archive: Archive, path: Path) -> str:
    """Fetch an archive to `path`, unless it is there, whole and verified; returns the mirror."""
    import pooch
    from requests.exceptions import RequestException

    pooch.get_logger().setLevel("WARNING")
    known = None if archive.md5 is None else f"md5:{archive.md5}"
    reasons = []
    for url in (f"{folder}/{archive.file}" for folder in archive.folders):
        try:
            with ExitStack() as stack, write_errors(path):
                bar = _bar(f"downloading {path.name}", stack)
                downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 20)
                pooch.retrieve(url, known, path.name, path.parent, downloader=downloader)
            return url
        except (RequestException, ValueError) as error:  # the latter of a checksum
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    raise IiaeError(
        f"{path.name} could not be downloaded ({'; '.join(reasons)})",
        f"run the same command again later, or fetch {path.name} elsewhere and pass it as SOURCE",
    )


def unpack(archive: Path, target: Path, *, wanted: str = "") -> str:
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive, unless the target was made from it.

    Everything goes to a temporary folder beside the target, which is renamed in at the end with a
    marker that names the archive. `wanted`: pattern of the entries to unpack from a tar. Returns
    the archive's SHA-256; a damaged, hostile or oversized archive is refused.
    """
    hint = "name a folder, or fetch the archive again"
    with reading(archive, hint), write_errors(target):
        sha256 = sha256_of(archive)
        marker = target / MARKER
        if marker.is_file() and sha256 in marker.read_text(encoding="utf-8"):
            return sha256
        if target.exists():
            raise IiaeError(
                f"{target} already exists, and was not unpacked from {archive}",
                f"name {target} itself as SOURCE to use it as it is, or delete it",
            )
        is_tar = tarfile.is_tarfile(archive)
        if not is_tar and not zipfile.is_zipfile(archive):
            raise IiaeError(f"{archive} is neither a tar nor a zip archive", _KINDS)
        console.say(f"unpacking {archive}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as holder:
            folder = Path(holder, "unpacked")
            folder.mkdir()
            if is_tar:
                _untar(archive, folder, re.compile(wanted))
            else:
                with zipfile.ZipFile(archive) as file:  # keeps every entry inside the folder
                    if sum(info.file_size for info in file.infolist()) > MAX_BYTES:
                        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
                    for info in file.infolist():
                        info.filename = info.filename.replace("\\", "/")  # of Windows
                        file.extract(info, folder)
            if not any(path.is_file() for path in folder.rglob("*")):
                raise ValueError("it holds none of the files looked for")
            (folder / MARKER).write_text(json.dumps({"archive": archive.name, "sha256": sha256}))
            folder.rename(target)
    return sha256


def _untar(archive: Path, folder: Path, wanted: re.Pattern[str]) -> None:
    unpacked = 0

    def kept(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal unpacked
        if not wanted.search(member.name):
            return None
        unpacked += member.size
        if unpacked > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
        return tarfile.data_filter(member, path)  # refuses devices, and what leads out

    with tarfile.open(archive) as file:
        file.extractall(folder, filter=kept)
        assert file.fileobj is not None
        while file.fileobj.read(1 << 20):  # to its end, where its own checksum stands
            pass
