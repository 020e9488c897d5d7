"""The published archives: where they lie, what is known of them, and what a builder gets of them.

None of their publishers gives a checksum. Where others recorded one it stands here with its place; where nobody did,
the archive's own SHA-256 is recorded in the data file, which tells at least whether two data files come from the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.data.sources.archives import MAX_BYTES, marker_of, open_source
from iiae_cli.data.sources.downloads import fetch

_GIB = 2**30


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        file: its name.
        urls: mirrors, tried in order.
        md5: as recorded by others; None: no published checksum is known.
        max_bytes: of the archive; several times its size, against endless answers.
        max_unpacked: bytes that it may unpack to.
        select: which of its entries are wanted; None: all.
    """

    file: str
    urls: tuple[str, ...]
    md5: str | None = None
    max_bytes: int = 2 * _GIB
    max_unpacked: int = 8 * _GIB
    select: Callable[[str], bool] | None = None


def _is_car(name: str) -> bool:
    """Whether an entry belongs to the cars: `data/cars/…`; the archive holds the other sets of its paper too."""
    stem = name.rpartition("/")[2]
    return "cars" in name.split("/")[:-1] or fnmatch(stem, "car_*_mesh.mat") or stem == "list.txt"


def _pix2pix(file: str) -> Archive:
    """An archive of pix2pix: https first, the address that its authors give, and their older one."""
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
        # github.com/nmichlo/disent, disent/dataset/data/_groundtruth__cars3d.py, `uri_hash`, "full".
        md5="4e866a7919c1beedf53964e6f7a23686",
        max_bytes=4 * _GIB,
        max_unpacked=32 * _GIB,
        select=_is_car,
    ),
}

BY_HAND: dict[str, str] = {
    "sketchy": (
        "fetch the Sketchy Database (rendered_256x256.7z) as https://sketchy.eye.gatech.edu says, the extended photos "
        "by the links in github.com/AnjanDutta/sem-pcyc (download_datasets.sh), unpack both, then run: "
        "iiae prepare sketchy SOURCE"
    ),
}
"""Sets whose archives have no address that a program can fetch, and how people get them."""


def archive_of(
    name: str, source: Path | None, download: bool, downloads: Path
) -> tuple[Path, dict[str, str]]:
    """The folder that holds a set's files, and the attributes that say where they came from.

    Args:
        name: of the data set.
        source: a folder or an archive that is already here; it goes before a download.
        download: whether the published archive may be fetched.
        downloads: where archives are kept and unpacked.

    Returns:
        The folder (the archive's own folders are below it) and `source`, with `source_sha256` where it is an archive.

    Raises:
        IiaeError: no source was named, it is missing or damaged, or it cannot be fetched.
    """
    archive = ARCHIVES.get(name)
    if source is None and download and archive is not None:
        fetched = fetch(
            archive.urls, downloads / archive.file, md5=archive.md5, max_bytes=archive.max_bytes
        )
        if fetched.url is not None:
            console.say(f"{fetched.path} is here, SHA-256 {fetched.sha256}")
        folder = _opened(fetched.path, downloads, archive)
        return folder, {"source": fetched.url or archive.file, "source_sha256": fetched.sha256}
    if source is None:
        raise _not_named(name, download)
    folder = _opened(source, downloads, archive)
    marker = None if source.is_dir() else marker_of(folder)
    return folder, {"source": str(source), **({"source_sha256": marker.sha256} if marker else {})}


def _opened(source: Path, downloads: Path, archive: Archive | None) -> Path:
    if archive is None:
        return open_source(source, downloads, max_bytes=MAX_BYTES)
    return open_source(source, downloads, max_bytes=archive.max_unpacked, select=archive.select)


def _not_named(name: str, download: bool) -> IiaeError:
    if name in BY_HAND:
        message = (
            f"{name} cannot be downloaded by a program"
            if download
            else f"the source of {name} was not named"
        )
        return IiaeError(message, BY_HAND[name])
    here = f"iiae prepare {name} SOURCE"
    hint = (
        f"iiae prepare {name} --download, or with what you have: {here}"
        if name in ARCHIVES
        else here
    )
    return IiaeError(f"the source of {name} was not named", hint)
