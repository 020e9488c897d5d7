"""Archives that a data set is prepared from: entries that climb out, links, devices, bombs, damage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from malformed.cases import DAMAGE, MAYBE, Making, each, flipped, malformed, truncated
from malformed.pictures import saved

KIND = "archives"
SETS = ("facades", "maps", "cars", "sketchy", "classes")


def reading(make: Making, path: Path) -> list[object]:
    return ["prepare", make.rng.choice(SETS[:2]), path, "-o", "out/a.h5"]


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar_of(make: Making, *entries: tuple[tarfile.TarInfo, bytes], good: bool = True) -> bytes:
    """Entries after good pictures, compressed one way or another."""
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=make.rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    ) as tar:
        if good:
            for split in ("train", "test"):
                content = saved(make, "PNG", (40, 20))
                info = tarfile.TarInfo(f"facades/{split}/1.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    squeeze = make.rng.choice([lambda raw: raw, gzip.compress, bz2.compress, lzma.compress])
    return squeeze(file.getvalue())


def names(make: Making) -> list[str]:
    """Names that lead out of the folder that an archive is unpacked to."""
    out = make.folder.parent / "escaped.png"
    return [
        "../escaped.png",
        "../../../../escaped.png",
        "facades/train/../../../escaped.png",
        str(out),
        f"/{out}",
        "./../escaped.png",
        "..\\escaped.png",
        "C:\\escaped.png",
        "facades/train/\0/../../../escaped.png",
        "..",
        "/~/escaped.png",
        "a/" * 100 + "escaped.png",
        "a" * 5000 + ".png",
        "facades/train/\udcff.png",
    ]


@each(KIND, *range(14), allowed=DAMAGE)
def a_name_that_climbs_out_of_a_tar(make: Making, which: Any) -> list[object]:
    content = tar_of(make, entry(names(make)[which], b"escaped"))
    return reading(make, make.file(make.rng.choice(["a.tar", "a.tar.gz", "a.zip"]), content))


@each(KIND, *range(14), allowed=DAMAGE)
def a_name_that_climbs_out_of_a_zip(make: Making, which: Any) -> list[object]:
    with zipfile.ZipFile(make.folder / "a.zip", "w") as archive:
        archive.writestr("facades/train/1.png", saved(make, "PNG", (40, 20)))
        name = names(make)[which].encode("utf-8", "replace").decode()
        archive.writestr(
            zipfile.ZipInfo(name.replace("\0", "\1")), b"escaped"
        )  # the library cuts at a NUL
    return reading(
        make,
        make.file("a.zip", (make.folder / "a.zip").read_bytes().replace(b"train/\1", b"train/\0")),
    )


def links(make: Making) -> list[list[tuple[tarfile.TarInfo, bytes]]]:
    out = str(make.folder.parent)
    sym, hard = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
    return [
        [
            entry("facades/train/l", linkname=out, **sym),
            entry("facades/train/l/escaped.png", b"escaped"),
        ],
        [entry("facades/train/2.png", linkname="/etc/passwd", **sym)],
        [entry("facades/train/2.png", linkname="../../../../../etc/passwd", **sym)],
        [entry("facades/train/2.png", linkname="/etc/passwd", **hard)],
        [entry("facades/train/2.png", linkname="facades/train/2.png", **sym)],
        [
            entry("facades/train", linkname=out, **sym),
            entry("facades/train/escaped.png", b"escaped"),
        ],
        [entry("facades/train/2.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
        [entry("facades/train/2.png", type=tarfile.BLKTYPE, devmajor=8, devminor=0)],
        [entry("facades/train/2.png", type=tarfile.FIFOTYPE)],
        [entry("facades/train/2.png", type=b"Z")],
        [entry("facades/train/2.png", type=tarfile.CONTTYPE)],
        [entry("facades", b"a file where a folder is")],
    ]


@each(KIND, *range(12), allowed=DAMAGE)
def links_and_devices(make: Making, which: Any) -> list[object]:
    return reading(make, make.file("a.tar.gz", tar_of(make, *links(make)[which])))


@malformed(KIND, times=2)
def a_link_in_a_zip(make: Making) -> list[object]:
    with zipfile.ZipFile(make.folder / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("facades/train/l.png")
        info.external_attr = make.rng.choice([0o120777, 0o020777, 0o010777]) << 16
        archive.writestr(info, "/etc/passwd")
    return reading(make, make.folder / "a.zip")


@malformed(KIND)
def a_zip_that_says_it_is_small(make: Making) -> list[object]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("facades/train/1.png", bytes(1 << 27))
    content = file.getvalue().replace(struct.pack("<I", 1 << 27), struct.pack("<I", 10))
    return reading(make, make.file("a.zip", content))


@malformed(KIND)
def a_tar_that_says_it_is_huge(make: Making) -> list[object]:
    info, _ = entry("facades/train/1.png")
    info.size = 2**42
    file = io.BytesIO()
    file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000))
    return reading(make, make.file("a.tar", file.getvalue()))


@each(KIND, b"L", b"K", b"x", b"g")
def a_tar_with_a_header_of_gigabytes(make: Making, kind: Any) -> list[object]:
    info, _ = entry("././@LongLink")
    info.type, info.size = kind, 3 << 30
    squeeze = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 26), 1)
    return reading(make, make.file("a.tar.gz", squeeze))


@malformed(KIND)
def a_zip_of_many_entries(make: Making) -> list[object]:
    """100,000 entries that share one body: the count is told, the content overlaps."""
    with zipfile.ZipFile(make.folder / "a.zip", "w") as archive:
        archive.writestr("facades/train/1.png", b"x" * 1000)
        whole = archive.infolist()[0]
        archive.filelist.extend([whole] * 20_000)
    return reading(make, make.folder / "a.zip")


@malformed(KIND, times=2)
def a_zip_of_overlapping_entries(make: Making) -> list[object]:
    """Every entry begins at the first one's place, under a name of its own."""
    with zipfile.ZipFile(make.folder / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"facades/train/{number}.png", b"x" * 1000)
        for info in archive.infolist():
            info.header_offset = 0
    return reading(make, make.folder / "a.zip")


@malformed(KIND, times=12, allowed=DAMAGE)
def a_truncated_archive(make: Making) -> list[object]:
    content = truncated(
        tar_of(make, entry("facades/val/2.png", saved(make, "PNG", (40, 20)))), make.rng
    )
    return reading(make, make.file("a.tar.gz", content))


@malformed(KIND, times=20, allowed=MAYBE)
def a_damaged_archive(make: Making) -> list[object]:
    if make.rng.random() < 0.5:
        content = tar_of(make)
    else:
        file = io.BytesIO()
        with zipfile.ZipFile(
            file, "w", make.rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        ) as archive:
            for split in ("train", "test"):
                archive.writestr(f"facades/{split}/1.png", saved(make, "PNG", (40, 20)))
        content = file.getvalue()
    return reading(make, make.file("a.tar.gz", flipped(content, make.rng, most=15)))


@each(
    KIND,
    b"",
    b"PK\x05\x06" + bytes(18),
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"7z\xbc\xaf\x27\x1c",
    bytes(1024),
    b"<html>",
)
def no_archive(make: Making, content: Any) -> list[object]:
    name = make.rng.choice(SETS)
    return ["prepare", name, make.file("a.tar.gz", content), "-o", "out/a.h5"]
