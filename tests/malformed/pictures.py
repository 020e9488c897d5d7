"""Picture files: damaged, bombs, of odd modes, or something else under a picture's name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from malformed.cases import (
    ACCEPTED,
    DAMAGE,
    LEFT_OUT,
    MAYBE,
    Making,
    each,
    flipped,
    malformed,
    truncated,
)

KIND = "pictures"
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")


def reading(make: Making, path: Path) -> list[object]:
    """One of the commands that read a picture: alone, so that there is nothing else to do."""
    run = ("--run", make.ground.run)
    return make.rng.choice(
        [
            ["encode", path, "--domain", "x", *run, "-o", "out/z.h5"],
            ["translate", path, "--from", "x", *run, "-o", "out/t", "--grid", "out/g.png"],
            [
                "translate",
                make.ground.picture,
                "--from",
                "x",
                "--reference",
                path,
                *run,
                "-o",
                "out/t",
            ],
            [
                "retrieve",
                path,
                *run,
                "--index",
                make.ground.run / "gallery.h5",
                "--montage",
                "out/m.png",
            ],
        ]
    )


def saved(
    make: Making, kind: str, size: tuple[int, int] = (24, 20), mode: str = "RGB", **options: Any
) -> bytes:
    """A random picture as bytes of a format."""
    pixels = make.numbers.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(
    width: int, height: int, content: bytes, *more: bytes, depth: int = 8, colour: int = 2
) -> bytes:
    """A PNG of any header, its pixels deflated."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(content, 9))
        + chunk(b"IEND", b"")
    )


# ---- damage


@malformed(KIND, times=14)
def a_truncated_picture(make: Making) -> list[object]:
    kind = make.rng.choice(["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"])
    content = saved(make, kind)
    return reading(
        make, make.file(f"a.{kind.lower()}", content[: make.rng.randrange(int(len(content) * 0.8))])
    )


@malformed(KIND, times=2, allowed=MAYBE)
def a_truncated_gif(make: Making) -> list[object]:
    """Its first picture may be whole."""
    return reading(make, make.file("a.gif", truncated(saved(make, "GIF"), make.rng)))


@malformed(KIND, times=45, allowed=MAYBE)
def a_damaged_picture(make: Making) -> list[object]:
    """A flipped bit may only change colours."""
    kind = make.rng.choice(FORMATS)
    content = saved(make, kind)
    return reading(
        make,
        make.file(
            f"a.{kind.lower()}", flipped(content, make.rng, 4, make.rng.choice([64, None]), 5)
        ),
    )


@malformed(KIND, times=4, allowed=LEFT_OUT)
def a_damaged_picture_among_good_ones(make: Making) -> list[object]:
    for number in range(4):
        for domain in "xy":
            make.file(f"{domain}/{number}.png", saved(make, "PNG"))
    make.file(f"{make.rng.choice('xy')}/{make.rng.randrange(4)}.png", saved(make, "PNG")[:50])
    if make.rng.random() < 0.5:
        return ["prepare", "pairs", make.folder, "-o", "out/a.h5"]
    return ["encode", make.folder, "--domain", "x", "--run", make.ground.run, "-o", "out/z.h5"]


# ---- bombs


@each(
    KIND,
    (60_000, 60_000),
    (2**31 - 1, 2**31 - 1),
    (2**31 - 1, 1),
    (1, 2**31 - 1),
    (30_000, 30_000),
    (0, 0),
    (12_000, 12_000),
)
def a_png_of_too_many_pixels(make: Making, size: Any) -> list[object]:
    return reading(make, make.file("a.png", png(*size, bytes(1 << 20))))


@malformed(KIND)
def a_png_whose_pixels_are_all_there(make: Making) -> list[object]:
    """13,000 x 13,000 black pixels in half a megabyte."""
    squeeze = zlib.compressobj(1)
    row = bytes(1 + 13_000 * 3)
    content = b"".join(squeeze.compress(row) for _ in range(13_000)) + squeeze.flush()
    whole = png(13_000, 13_000, b"").replace(
        chunk(b"IDAT", zlib.compress(b"", 9)), chunk(b"IDAT", content)
    )
    return reading(make, make.file("a.png", whole))


@each(KIND, b"zTXt", b"iCCP", b"iTXt", allowed=MAYBE)
def a_png_with_a_text_that_inflates(make: Making, name: Any) -> list[object]:
    """The text, no matter to us, is refused or passed over."""
    bomb = zlib.compress(bytes(1 << 28), 1)
    head = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[name]
    return reading(make, make.file("a.png", png(20, 20, bytes(61 * 20), chunk(name, head + bomb))))


@each(
    KIND,
    b"P6 99999999 99999999 255\n",
    b"P6 60000 60000 255\n",
    b"P5 99999 1 65535\n",
    b"P6 -5 5 255\n",
    b"P6 " + b"9" * 500,
)
def a_ppm_of_any_size(make: Making, head: Any) -> list[object]:
    return reading(make, make.file("a.ppm", head + bytes(100)))


@malformed(KIND)
def a_ppm_with_an_endless_comment(make: Making) -> list[object]:
    return reading(make, make.file("a.ppm", b"P6 #" + b"a" * (4 << 20)))


@each(KIND, "BMP", "GIF", "JPEG", "TIFF")
def a_header_that_says_a_larger_size(make: Making, kind: Any) -> list[object]:
    content = bytearray(saved(make, kind))
    if kind == "BMP":
        content[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", 65_535, 65_535)
        place = content.index(b"\x2c")
        content[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)
    elif kind == "JPEG":
        place = content.index(b"\xff\xc0")
        content[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    else:
        for entry in entries_of_tiff(content):
            if struct.unpack("<H", content[entry : entry + 2])[0] in (256, 257):  # width, height
                content[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 60_000)
    return reading(make, make.file(f"a.{kind.lower()}", bytes(content)))


def entries_of_tiff(content: bytearray) -> range:
    """Where the entries of the first directory begin."""
    place = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[place : place + 2])[0]
    return range(place + 2, place + 2 + 12 * count, 12)


@malformed(KIND)
def a_tiff_whose_directories_go_in_a_circle(make: Making) -> list[object]:
    content = bytearray(saved(make, "TIFF"))
    entries = entries_of_tiff(content)
    for entry in entries:  # strips that lie beyond the end
        if struct.unpack("<H", content[entry : entry + 2])[0] in (273, 279):
            content[entry + 8 : entry + 12] = struct.pack("<I", 2**32 - 1)
    content[entries.stop : entries.stop + 4] = content[4:8]
    return reading(make, make.file("a.tif", bytes(content)))


# ---- modes: none of these is wrong


def grey16(make: Making) -> bytes:
    file = io.BytesIO()
    Image.fromarray(make.numbers.integers(0, 65536, (20, 24)).astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


def floats(make: Making) -> bytes:
    values = make.numbers.normal(size=(20, 24)).astype(np.float32) * 10.0 ** make.rng.randint(
        -5, 30
    )
    values[0, :3] = [np.nan, np.inf, -np.inf]
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def animated(make: Making) -> bytes:
    frames = [
        Image.fromarray(make.numbers.integers(0, 256, (20, 24, 3)).astype(np.uint8))
        for _ in range(4)
    ]
    file = io.BytesIO()
    frames[0].save(
        file,
        make.rng.choice(["GIF", "PNG", "WEBP", "TIFF"]),
        save_all=True,
        append_images=frames[1:],
    )
    return file.getvalue()


def palette(make: Making) -> bytes:
    image = Image.open(io.BytesIO(saved(make, "PNG"))).convert("P")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)))
    return file.getvalue()


def turned(make: Making) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = make.rng.choice([0, 3, 5, 8, 9, 65_535])
    return saved(make, "JPEG", exif=exif.tobytes())


MODES: tuple[Callable[[Making], bytes], ...] = (
    *(grey16, floats, animated, palette, turned),
    *(
        lambda make, mode=mode: saved(make, "PNG", mode=mode)
        for mode in ("1", "L", "LA", "P", "RGBA", "I;16")
    ),
    *(
        lambda make, mode=mode: saved(make, "TIFF", mode=mode)
        for mode in ("CMYK", "YCbCr", "LAB", "I", "F")
    ),
    *(lambda make, mode=mode: saved(make, "JPEG", mode=mode) for mode in ("CMYK", "L")),
    *(
        lambda make, size=size: saved(make, "PNG", size)
        for size in ((1, 1), (1, 500), (500, 1), (2, 2))
    ),
)


@each(KIND, *MODES, allowed=ACCEPTED)
def an_odd_but_good_picture(make: Making, content: Any) -> list[object]:
    return reading(make, make.file("a.png", content(make)))


@malformed(KIND, times=6, allowed=MAYBE)
def broken_exif(make: Making) -> list[object]:
    """Pixels are whole; a turn that cannot be read is none, or the file is left out."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a" * 50
    content = flipped(exif.tobytes(), make.rng, 6)
    return reading(
        make,
        make.file("a.jpg", saved(make, make.rng.choice(["JPEG", "WEBP", "PNG"]), exif=content)),
    )


# ---- something else


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
(canary) (w) file closefile
%%EOF
"""
SOMETHING_ELSE: tuple[bytes, ...] = (
    b"",
    b"\0" * 1000,
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
    b"<!DOCTYPE html><html></html>",
    EPS,
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM" + bytes(60),
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"II*\0\xff\xff\xff\xff",
    b"%PDF-1.7\n",
    b"PK\x03\x04" + bytes(100),
    b"\x89HDF\r\n\x1a\n" + bytes(200),
    b"8BPS\0\1" + bytes(100),
    b"\x80\x04cos\nsystem\n(X\x00tR.",
    b"\0\0\1\0\1\0" + b"\xff" * 16,
    b"SIMPLE  =                    T" + b" " * 50 + b"NAXIS   = 999999",
)


@each(KIND, *SOMETHING_ELSE)
def something_else_named_png(make: Making, content: Any) -> list[object]:
    return reading(make, make.file("a.png", content))


@each(KIND, "pipe", "circle", "dangling", "folder", "/dev/zero", "/dev/null", "/etc/passwd")
def no_file_at_all(make: Making, what: Any) -> list[object]:
    path = make.folder / "a.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"circle": path, "dangling": "nowhere.png"}.get(str(what), what))
    return reading(make, path)


@each(
    KIND,
    *[b"\xff\xfe.png"] * 5,
    b"a\nerror: forged\n.png",
    b"a\tb\x1b[2J.png",
    "ü".encode() * 100 + b".png",
    allowed=ACCEPTED,
)
def a_good_picture_of_an_odd_name(make: Making, name: Any) -> list[object]:
    """File names are any bytes but two."""
    path = make.folder / "pictures" / os.fsdecode(name)
    path.parent.mkdir()
    path.write_bytes(saved(make, "PNG"))
    run = ("--run", make.ground.run)
    return make.rng.choice(
        [
            ["encode", path.parent, "--domain", "x", *run, "-o", "out/z.h5"],
            ["encode", path.parent, "--domain", "x", *run, "-o", "out/z.h5", "--json"],
            ["retrieve", path.parent, *run, "--index", make.ground.run / "gallery.h5"],
            ["retrieve", path.parent, *run, "--index", make.ground.run / "gallery.h5", "--json"],
            ["translate", path.parent, "--from", "x", *run, "-o", "out/t", "--grid", "out/g.png"],
        ]
    )


@each(
    KIND,
    b"\xff\xfe\n",
    b"/etc/passwd\n",
    b"a" * 5000 + b"\n",
    b"\0\0\0",
    b"../../../x.png\n",
    b"\n\n",
    b"\x1b[2J\n",
)
def paths_on_standard_input(make: Making, content: Any) -> list[object]:
    make.stdin = content
    options = ["-0"] if make.rng.random() < 0.3 else []
    return ["encode", "-", *options, "--domain", "x", "--run", make.ground.run, "-o", "out/z.h5"]


# ---- sets of pictures


@each(KIND, "side", "pairs", "facades", "manifest", allowed=DAMAGE)
def a_set_of_odd_pictures(make: Making, layout: Any) -> list[object]:
    """Good, tiny, damaged, huge and foreign ones together; what is good is kept."""
    good = saved(make, "PNG", (40, 20))
    contents = [
        good,
        good,
        good[:60],
        png(60_000, 60_000, b""),
        b"",
        saved(make, "PNG", (1, 1)),
        EPS,
        grey16(make),
    ]
    lines = ["x,y"]
    for number, content in enumerate(contents):
        if layout == "side":
            make.file(f"{number}.png", content)
        elif layout == "facades":
            make.file(f"train/{number}.png", content)
            make.file(f"test/{number}.png", good)
        else:
            make.file(f"x/{number}.png", content)
            make.file(f"y/{number}.png", good)
            lines.append(f"x/{number}.png,y/{number}.png")
    lines += [
        "/etc/passwd,/dev/zero",
        "../../../../etc/passwd,x/0.png",
        "x/0.png",
        ",",
        '"a\nb",c',
        "a" * 5000 + ",b",
    ]
    manifest = make.file("pairs.csv", "\n".join(lines))
    return {
        "side": ["prepare", "pairs", make.folder, "--side-by-side", "-o", "out/a.h5"],
        "pairs": ["prepare", "pairs", make.folder, "-o", "out/a.h5", "--pictures", "out/p"],
        "facades": ["prepare", "facades", make.folder, "-o", "out/a.h5"],
        "manifest": ["prepare", "pairs", manifest, "-o", "out/a.h5", "--pictures", "out/p"],
    }[str(layout)]


@each(
    KIND,
    b"",
    b"\xff\xfe",
    b"x,y\n",
    b"x,x\na,b",
    b"a,b\nc,d",
    b'x,y\n"unclosed',
    b"x,y\n" + b"a" * 200_000 + b",b",
    b"x,y\n\0,\0\n",
)
def a_manifest_of_nothing(make: Making, content: Any) -> list[object]:
    return ["prepare", "pairs", make.file("pairs.csv", content), "-o", "out/a.h5"]
