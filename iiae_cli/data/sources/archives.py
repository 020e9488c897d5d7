"""Unpacking archives that nobody vouches for.

tar and zip are read as one stream of entries, each checked before a byte of it is written: plain files and folders
only, names that stay below the target, bounded counts and sizes, by what was declared and by what really comes out.
Everything goes to a temporary folder beside the target, which is renamed in at the end with a marker
(`.iiae-archive.json`: the archive's name and SHA-256), so that a target is whole, and unpacking the same archive again
is no work.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_errors
from iiae_cli.data.datafile import sha256_of
from iiae_cli.data.sources.archive_entries import Entry, Refused, entries

MAX_BYTES = 64 * 2**30
MAX_ENTRIES = 2_000_000
MARKER = ".iiae-archive.json"

_CHUNK = 1 << 20  # bytes
_MAX_DEPTH = 32  # folders; an entry makes all of its parents
_MAX_NAME = 255  # bytes of one part of a name, what file systems take
_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")


@dataclass(frozen=True)
class Marker:
    """What a folder was unpacked from.

    Attributes:
        archive: its file name.
        sha256: its own, in hex.
    """

    archive: str
    sha256: str


def marker_of(folder: Path) -> Marker | None:
    """The marker of an unpacked folder; None where `unpack` did not make it."""
    try:
        value = json.loads((folder / MARKER).read_text())
        return Marker(str(value["archive"]), str(value["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    select: Callable[[str], bool] | None = None,
) -> Path:
    """Unpack a tar (plain, .gz, .bz2, .xz) or zip archive, or find it unpacked.

    Args:
        archive: the file; its content decides what it is, not its name.
        target: the folder to make. One made from this very archive is reused.
        max_bytes: of all files together; of a tar, which is read from end to end, also of those not wanted.
        max_entries: files and folders in the archive, wanted or not.
        select: tells by an entry's name (`a/b/c.png`) whether it is wanted; None: all are. `__MACOSX`, `.DS_Store` and
            `._NAME` never are. It must not change between calls with one target: the marker does not know it.

    Returns:
        `target`.

    Raises:
        IiaeError: no archive, a damaged or a hostile one, one beyond the bounds; or the target is something else.
    """
    if not archive.is_file():
        raise IiaeError(
            f"archive {archive} does not exist",
            "name a tar or zip file, or the folder it was unpacked to",
        )
    marker = Marker(archive.name, sha256_of(archive))
    if _is_there(target, marker):
        return target
    console.say(f"unpacking {archive}")
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        # A folder within, because mkdtemp's own is private and the result shall have the umask's permissions.
        folder = holder / "unpacked"
        with _refusals(archive), write_errors(target):
            folder.mkdir()
            _write_all(archive, folder, max_bytes, max_entries, select)
            (folder / MARKER).write_text(json.dumps(asdict(marker)))
        _move_in(folder, target, marker)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    return target


def _is_there(target: Path, wanted: Marker) -> bool:
    """Whether the target was unpacked from the archive wanted.

    Raises:
        IiaeError: it exists and was not.
    """
    if not (target.exists() or target.is_symlink()):
        return False
    found = marker_of(target)
    if found is not None and found.sha256 == wanted.sha256:
        return True
    if found is None:
        message = f"{target} exists, and was not unpacked from {wanted.archive} by this program"
    else:
        origin = f"another {found.archive}" if found.archive == wanted.archive else found.archive
        message = f"{target} was unpacked from {origin} (SHA-256 {found.sha256}), not from this {wanted.archive}"
    raise IiaeError(message, f"name {target} itself as SOURCE to use it as it is, or delete it")


def _move_in(folder: Path, target: Path, marker: Marker) -> None:
    with write_errors(target):
        try:
            folder.rename(target)
        except OSError:
            # Another process may have been faster, with the same archive.
            if not _is_there(target, marker):
                raise


@contextmanager
def _refusals(archive: Path) -> Iterator[None]:
    """Turn what is wrong with the archive's content into user errors."""
    try:
        yield
    except Refused as error:
        raise IiaeError(f"{archive} {error}", error.hint) from error
    except NotImplementedError as error:
        raise IiaeError(
            f"{archive} cannot be read: {error}", "unpack it yourself and name the folder as SOURCE"
        ) from error
    except (
        tarfile.TarError,
        BadZipFile,
        struct.error,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        ValueError,
        OSError,
    ) as error:
        # The system's errors carry a number; gzip's and bz2's complaints about their data are an OSError without one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise IiaeError(
            f"{archive} is damaged or incomplete: {error or type(error).__name__}",
            f"delete {archive} and fetch it again",
        ) from error


def _write_all(
    archive: Path,
    folder: Path,
    max_bytes: int,
    max_entries: int,
    select: Callable[[str], bool] | None,
) -> None:
    left = max_bytes
    written = 0
    with entries(archive, max_entries, max_bytes) as found:
        for entry in found:
            if entry.name is None:  # the archive's own root, `./`
                continue
            parts = _checked_parts(entry.name)
            if _is_junk(parts) or (select is not None and not select("/".join(parts))):
                continue
            if entry.trouble is not None:
                raise entry.trouble
            if entry.size > left:
                raise Refused(f"unpacks to more than the {max_bytes} bytes expected at most")
            left -= _write(entry, folder, parts, left)
            written += not entry.is_folder
    if not written:
        raise Refused("holds none of the files looked for" if select else "holds no files")


def _checked_parts(name: str) -> list[str]:
    """The parts of a name that stays below the target.

    Raises:
        Refused: it does not, or no file system would take it everywhere.
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name:
        raise Refused(f"has a name that is absolute, or no plain relative one: {name!r}")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise Refused(f"has a name that leaves the folder it is unpacked to: {name!r}")
    if len(parts) > _MAX_DEPTH or any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
        raise Refused(f"has a name that is too long: {name[:80]!r}…")
    return parts


def _is_junk(parts: list[str]) -> bool:
    return "__MACOSX" in parts or parts[-1] in (".DS_Store", MARKER) or parts[-1].startswith("._")


def _write(entry: Entry, folder: Path, parts: list[str], left: int) -> int:
    """Write one entry; returns its bytes. A later file of the same name replaces an earlier one, as tar does."""
    path = folder.joinpath(*parts)
    try:
        if entry.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return 0
        handle = _new_file(path, 0o755 if entry.executable else 0o644)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise Refused(f"has a file and a folder of one name: {entry.name!r}") from None
    size = 0
    with os.fdopen(handle, "wb") as file, entry.open() as stream:
        while block := stream.read(_CHUNK):
            size += len(block)
            if size > left or size > entry.size:
                raise Refused(
                    f"holds more bytes than it says, or than are expected at most, in {entry.name!r}"
                )
            file.write(block)
    if size != entry.size:
        raise EOFError(f"{entry.name!r} ends after {size} of {entry.size} bytes")
    return size


def _new_file(path: Path, mode: int) -> int:
    """Open a file that was not there; its folders are made, an earlier file of its name goes."""
    # O_EXCL follows no link either, should one stand here all the same.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if path.is_dir():
            raise
        path.unlink()
    return os.open(path, flags, mode)


def open_source(
    source: Path,
    downloads: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    select: Callable[[str], bool] | None = None,
) -> Path:
    """The folder to look in: `source` itself where it is one, else `downloads`/STEM with the archive unpacked.

    Args:
        source: a folder, or an archive.
        downloads: where archives are unpacked.
        max_bytes: as `unpack`.
        max_entries: as `unpack`.
        select: as `unpack`.

    Raises:
        IiaeError: as `unpack`, or the source does not exist.
    """
    if source.is_dir():
        return source
    if not source.exists():
        raise IiaeError(f"{source} does not exist", "name a folder, or a tar or zip archive")
    return unpack(
        source,
        downloads / _stem(source),
        max_bytes=max_bytes,
        max_entries=max_entries,
        select=select,
    )


def _stem(archive: Path) -> str:
    for suffix in _SUFFIXES:
        if archive.name.lower().endswith(suffix) and len(archive.name) > len(suffix):
            return archive.name[: -len(suffix)]
    return f"{archive.name}-unpacked"


def find_folder(root: Path, *wanted: str, depth: int = 4) -> Path | None:
    """The shallowest folder that holds all entries wanted: `root`, or one at most `depth` below; None if none does.

    Among equals the first by name. Links to folders are not followed, except `root`.
    """
    level = [root]
    for below in range(depth + 1):
        for folder in level:
            if all((folder / name).exists() for name in wanted):
                return folder
        if below < depth:
            level = [inner for folder in level for inner in _folders_in(folder)]
    return None


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return sorted(Path(one.path) for one in found if one.is_dir(follow_symlinks=False))
