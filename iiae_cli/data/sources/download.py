"""Published archives: fetched from their mirrors, unpacked, and known by their checksums.

No publisher gives a checksum. Where others recorded one it stands here with its source; elsewhere
the archive's own SHA-256 goes into the data file, so that two data files can be compared.
"""

from __future__ import annotations

import json
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypeAlias

from iiae_cli import __version__
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import reading, sha256_of, write_errors

MARKER = ".iiae-archive.json"
Select: TypeAlias = Callable[[str], bool]  # whether the entry of a name is wanted
_GIB = 2**30
_PER_ENTRY = 512  # bytes that an entry counts beside its content, so that their number is bounded


@dataclass(frozen=True)
class Archive:
    """A published archive, its mirrors in order, and bounds of several times its size."""

    file: str
    urls: tuple[str, ...]
    md5: str | None = None  # as recorded by others; None: no checksum is known
    max_bytes: int = 2 * _GIB
    max_unpacked: int = 8 * _GIB
    select: Select | None = None


def _is_car(name: str) -> bool:
    """Whether an entry is in `data/cars/`; the archive holds the other sets of its paper too."""
    stem = name.rpartition("/")[2]
    return "cars" in name.split("/")[:-1] or fnmatch(stem, "car_*_mesh.mat") or stem == "list.txt"


def _pix2pix(file: str) -> Archive:
    """An archive of pix2pix: by https, by the address that its authors give, by their older one."""
    return Archive(
        file,
        (
            f"https://efrosgans.eecs.berkeley.edu/pix2pix/datasets/{file}",
            f"http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/{file}",
            f"https://people.eecs.berkeley.edu/~tinghuiz/projects/pix2pix/datasets/{file}",
        ),
    )


ARCHIVES: dict[str, Archive] = {
    "facades": _pix2pix("facades.tar.gz"),
    "maps": _pix2pix("maps.tar.gz"),
    "cars": Archive(
        "nips2015-analogy-data.tar.gz",
        (
            "http://www.scottreed.info/files/nips2015-analogy-data.tar.gz",
            "http://www-personal.umich.edu/~reedscot/files/nips2015-analogy-data.tar.gz",
        ),
        # github.com/nmichlo/disent, disent/dataset/data/_groundtruth__cars3d.py, "full".
        md5="4e866a7919c1beedf53964e6f7a23686",
        max_bytes=4 * _GIB,
        max_unpacked=32 * _GIB,
        select=_is_car,
    ),
}

BY_HAND: dict[str, str] = {
    "sketchy": (
        "fetch the Sketchy Database (rendered_256x256.7z) as https://sketchy.eye.gatech.edu says, "
        "the extended photos by the links in github.com/AnjanDutta/sem-pcyc "
        "(download_datasets.sh), unpack both, then run: iiae prepare sketchy SOURCE"
    ),
}
"""Sets whose archives have no address that a program can fetch, and how people get them."""


def archive_of(
    name: str, source: Path | None, download: bool, downloads: Path
) -> tuple[Path, dict[str, str]]:
    """Find, fetch or unpack the folder that holds a set's files.

    Args:
        name: of the data set.
        source: a folder or an archive that the user has; it goes before a download.
        download: whether the published archive may be fetched.
        downloads: where archives are kept and unpacked.

    Returns:
        The folder, and the data file's attributes `source` and, for an archive, `source_sha256`.
    """
    archive = ARCHIVES.get(name)
    if source is None and download and archive is not None:
        source = downloads / archive.file
        origin = fetch(archive, source)
    elif source is None:
        raise _not_named(name, download)
    else:
        origin = str(source)
    if source.is_dir():
        return source, {"source": origin}
    if not source.exists():
        raise IiaeError(f"{source} does not exist", "name a folder, or a tar or zip archive")
    target = downloads / _stem(source.name)
    bounds = archive or Archive(source.name, (), max_unpacked=64 * _GIB)
    sha256 = unpack(source, target, max_bytes=bounds.max_unpacked, select=bounds.select)
    return target, {"source": origin, "source_sha256": sha256}


def _not_named(name: str, download: bool) -> IiaeError:
    if name in BY_HAND and download:
        return IiaeError(f"{name} cannot be downloaded by a program", BY_HAND[name])
    here = BY_HAND.get(name, f"iiae prepare {name} SOURCE")
    if name in ARCHIVES:
        here = f"iiae prepare {name} --download, or with what you have: {here}"
    return IiaeError(f"the source of {name} was not named", here)


def _stem(name: str) -> str:
    stem = re.sub(r"(?<=.)\.(tar(\.\w+)?|tgz|tbz2|txz|zip)$", "", name, flags=re.IGNORECASE)
    return f"{name}-unpacked" if stem == name else stem


class _Bar:
    """What pooch reports to: a progress bar in MiB, which also bounds the size."""

    def __init__(self, name: str, max_bytes: int, stack: ExitStack) -> None:
        self._name, self._max_bytes, self._stack = name, max_bytes, stack
        self._progress: console.Progress | None = None
        self.total = self._done = 0

    def update(self, size: int) -> None:
        """Count more bytes."""
        self._done += size
        if max(self._done, self.total) > self._max_bytes:
            raise ValueError(f"is larger than the {self._max_bytes} bytes expected at most")
        if self._progress is None:
            bar = console.progress(f"downloading {self._name}", max(1, self.total >> 20), "MiB")
            self._progress = self._stack.enter_context(bar)
        self._progress.update(self._done >> 20)

    def reset(self) -> None:
        """Count again, as pooch does before its last report."""
        self._done = 0

    def close(self) -> None:
        """The stack closes the bar."""


def fetch(archive: Archive, path: Path) -> str:
    """Fetch an archive to `path` from the first mirror that has it, unless it is already there.

    The file appears whole and verified, or not at all.

    Returns:
        The mirror, or the file's name where nothing was fetched.
    """
    import pooch
    from requests.exceptions import RequestException

    pooch.get_logger().setLevel("WARNING")
    if path.exists() and archive.md5 is None:
        return archive.file
    known = None if archive.md5 is None else f"md5:{archive.md5}"
    reasons = []
    for url in archive.urls:
        try:
            with ExitStack() as stack, write_errors(path):
                downloader = pooch.HTTPDownloader(
                    progressbar=_Bar(path.name, archive.max_bytes, stack),
                    chunk_size=1 << 20,
                    headers={"User-Agent": f"iiae/{__version__}"},
                )
                pooch.retrieve(url, known, path.name, path.parent, downloader=downloader)
            return url
        except (RequestException, ValueError) as error:  # the latter of a checksum or a size
            reasons.append(f"{url}: {' '.join(str(error).split())}")
            console.say(reasons[-1], level=1)
    raise IiaeError(
        f"{path.name} could not be downloaded ({'; '.join(reasons)})",
        f"run the same command again later, or fetch {path.name} elsewhere and pass it as SOURCE",
    )


def unpack(archive: Path, target: Path, *, max_bytes: int, select: Select | None = None) -> str:
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive, unless the target was made from it.

    Everything goes to a temporary folder beside the target, which is renamed in at the end with a
    marker that names the archive. So a target is whole, and unpacking it again is no work.

    Returns:
        The archive's SHA-256.

    Raises:
        IiaeError: a damaged, hostile or oversized archive, or a target that is something else.
    """
    hint = f"delete {archive} and fetch it again, or unpack it yourself and name the folder"
    with reading(archive, hint), write_errors(target):
        sha256 = sha256_of(archive)
        if target.exists() or target.is_symlink():
            _check_target(target, sha256)
            return sha256
        console.say(f"unpacking {archive}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as holder:
            folder = Path(holder, "unpacked")
            folder.mkdir()
            budget = _Budget(archive, max_bytes, select)
            if tarfile.is_tarfile(archive):
                _untar(archive, folder, budget)
            elif zipfile.is_zipfile(archive):
                _unzip(archive, folder, budget)
            else:
                raise IiaeError(f"{archive} is neither a tar nor a zip archive", hint)
            if not any(path.is_file() for path in folder.rglob("*")):
                raise IiaeError(f"{archive} holds none of the files looked for", hint)
            marker = {"archive": archive.name, "sha256": sha256}
            (folder / MARKER).write_text(json.dumps(marker))
            folder.rename(target)
    return sha256


def _check_target(target: Path, sha256: str) -> None:
    """Raise unless a folder was unpacked from the archive of a checksum."""
    try:
        marker = json.loads((target / MARKER).read_text())
        origin = f"{marker['archive']} (SHA-256 {marker['sha256']})"
    except (OSError, ValueError, TypeError, KeyError):
        marker, origin = {"sha256": None}, "nothing that iiae knows"
    if marker["sha256"] != sha256:
        raise IiaeError(
            f"{target} already exists, unpacked from {origin}",
            f"name {target} itself as SOURCE to use it as it is, or delete it",
        )


class _Budget:
    """Decides entry by entry what is unpacked, and refuses an archive that means harm."""

    def __init__(self, archive: Path, max_bytes: int, select: Select | None) -> None:
        self._archive, self._max_bytes, self._select = archive, max_bytes, select
        self._left = max_bytes

    def takes(self, name: str, size: int, plain: bool) -> bool:
        """Whether an entry of `size` declared bytes, a `plain` file or folder or not, is wanted."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in name.split("/")[0]:
            self._refuse(f"has an entry that leaves its folder: {name!r}")
        if self._select is not None and not self._select("/".join(parts)):
            return False
        if not plain:
            self._refuse(f"has an entry that is no plain file or folder: {name!r}")
        self._left -= size + _PER_ENTRY
        if self._left < 0:
            self._refuse(f"unpacks to more than the {self._max_bytes} bytes expected")
        return True

    def _refuse(self, reason: str) -> NoReturn:
        hint = "check where it comes from; unpack what you trust yourself and name the folder"
        raise IiaeError(f"{self._archive} {reason}", hint)


def _unzip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive has no Unix modes
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            if budget.takes(info.filename, info.file_size, plain):
                file.extract(info, folder)


def _untar(archive: Path, folder: Path, budget: _Budget) -> None:
    def wanted(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        plain = member.isreg() or member.isdir()
        if not budget.takes(member.name, member.size, plain):
            return None
        return tarfile.data_filter(member, path)

    with tarfile.open(archive) as file:
        file.extractall(folder, filter=wanted)
        assert file.fileobj is not None
        blocks = iter(lambda: file.fileobj.read(1 << 20), b"")
        rest = {block.count(0) == len(block) for block in blocks}
    if rest != {True}:  # zeros; the library takes a broken header for the end too
        raise tarfile.ReadError("it has no end")


def find_folder(root: Path, name: str) -> Path | None:
    """The shallowest folder at or below `root` that holds a folder `name`; None if none does."""
    inner = (path.parent for path in root.rglob(name) if path.is_dir())
    return min(inner, key=lambda path: (len(path.parts), path), default=None)
