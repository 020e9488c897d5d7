"""Arrays: .npy and .npz of features, IDX files; with pickles, false headers, bombs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from malformed.cases import ACCEPTED, MAYBE, Making, each, flipped, malformed, truncated

KIND = "arrays"


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def npy(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def header(
    text: str, content: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """A .npy of any header."""
    form = "<H" if version == (1, 0) else "<I"
    size = struct.pack(form, len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text.encode() + content


def said(shape: object, descr: object = "<f4", order: object = False) -> str:
    return repr({"descr": descr, "fortran_order": order, "shape": shape}) + "\n"


def reading(make: Making, content: bytes) -> list[object]:
    """As features to encode, as a set's array in the released layout, or within an archive of arrays."""
    how = make.rng.randrange(3)
    if how == 0:
        path = make.file("a.npy", content)
        return ["encode", path, "--domain", "x", "--run", make.ground.feature_run, "-o", "out/z.h5"]
    good = {}
    for split in ("train", "test"):
        for word in ("sketch", "image"):
            good[f"{split}_{word}_features"] = npy(
                make.numbers.normal(size=(16, 12)).astype(np.float32)
            )
            good[f"{split}_{word}_labels"] = npy(
                np.array([f"{split} {number % 4}" for number in range(16)])
            )
    victim = make.rng.choice(["train_sketch_features", "test_image_features"])
    good[victim] = content
    if how == 1:
        for name, whole in good.items():
            make.file(f"set/{name}.npy", whole)
        return ["prepare", "classes", make.folder / "set", "-o", "out/c.h5"]
    with zipfile.ZipFile(make.folder / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, whole in good.items():
            archive.writestr(f"{name}.npy", whole)
    return ["prepare", "classes", make.folder / "set.npz", "-o", "out/c.h5"]


@malformed(KIND, times=6)
def an_array_of_pickled_objects(make: Making) -> list[object]:
    values = np.empty(make.rng.choice([(16,), (16, 12), ()]), object)
    values[...] = Canary(make.canary)
    return reading(make, npy(values, allow_pickle=True))


@malformed(KIND, times=3)
def a_bare_pickle(make: Making) -> list[object]:
    return reading(make, pickle.dumps(Canary(make.canary), protocol=make.rng.choice([0, 2, 4])))


@malformed(KIND, times=2)
def labels_that_are_pickled_objects(make: Making) -> list[object]:
    values = np.empty(16, object)
    values[...] = Canary(make.canary)
    for split in ("train", "test"):
        for word in ("sketch", "image"):
            make.file(f"labels/{split}_{word}_features.npy", npy(np.zeros((16, 12), np.float32)))
            make.file(f"labels/{split}_{word}_labels.npy", npy(values, allow_pickle=True))
    return ["prepare", "classes", make.folder / "labels", "-o", "out/c.h5"]


@each(
    KIND,
    header(said((10**12, 12))),
    header(said((2**63, 12))),
    header(said((2**40, 2**40))),
    header(said((10**9, 12))) + bytes(100),
    header(said((-1, 12))),
    header(said((1.5, 12))),
    header(said("ab")),
    header(said(None)),
    header(said((16, 12)), bytes(700)),
    header(said((16, 12), "O")),
    header(said((16, 12), "<x9")),
    header(said((16, 12), [("a", "<f4"), ("b", "O")])),
    header(said((16, 12), [("a", "<f4", (2**31, 2**31))])),
    header(said((16, 12), "<U4000000")),
    header(said((16, 12), "S", order=5)),
    header("{"),
    header("(" * 9000),
    header("{" * 5000 + "}" * 5000),
    header("[" * 60000),
    header("__import__('os').mknod('canary')\n"),
    header("{'descr': __import__('os').mknod('canary')}\n"),
    header("{}\n"),
    header("-" * 9000 + "1"),
    header(said((16, 12)), bytes(768), length=65_535),
    header(said((16, 12)), bytes(768), (2, 0), length=2**32 - 1),
    header(said((16, 12)), bytes(768), (9, 9)),
    header("\0\0\0", bytes(10), (3, 0)),
    b"",
    b"\x93NUMPY",
    b"\x93NUMPY\x01\x00",
    b"0.1,0.2\n0.3,0.4\n",
)
def a_false_header(make: Making, content: Any) -> list[object]:
    return reading(make, content)


@each(
    KIND,
    *(
        np.zeros((16, 12), dtype)
        for dtype in ("?", "c16", "S3", "U3", "M8[s]", "m8[s]", "V4", [("a", "f4")])
    ),
    *(np.zeros(shape, np.float32) for shape in ((), (12,), (16, 0), (16, 3, 4))),
    *(np.full((16, 12), value) for value in (np.nan, np.inf, -np.inf, 1e300)),
)
def values_that_are_no_features(make: Making, values: Any) -> list[object]:
    return reading(make, npy(values))


@each(KIND, "f2", "f8", ">f4", "<i2", "u1", "F", allowed=ACCEPTED)
def odd_but_good_features(make: Making, dtype: Any) -> list[object]:
    """Any real numbers in any order of bytes or axes."""
    values = make.numbers.integers(0, 100, (16, 12))
    values = np.asfortranarray(values, np.float32) if dtype == "F" else values.astype(dtype)
    return reading(make, npy(values))


@malformed(KIND, times=8)
def a_truncated_array(make: Making) -> list[object]:
    return reading(make, truncated(npy(make.numbers.normal(size=(16, 12))), make.rng))


@malformed(KIND, times=20, allowed=MAYBE)
def a_damaged_header(make: Making) -> list[object]:
    content = npy(make.numbers.normal(size=(16, 12)).astype(np.float32))
    return reading(make, flipped(content, make.rng, 6, 128, 4))


@malformed(KIND, times=20, allowed=MAYBE)
def a_damaged_archive_of_arrays(make: Making) -> list[object]:
    file = io.BytesIO()
    arrays = {}
    for split in ("train", "test"):
        for word in ("sketch", "image"):
            arrays[f"{split}_{word}_features"] = make.numbers.normal(size=(8, 3)).astype(np.float32)
            arrays[f"{split}_{word}_labels"] = np.array(
                [f"{split} {number % 2}" for number in range(8)]
            )
    (np.savez_compressed if make.rng.random() < 0.5 else np.savez)(file, **arrays)
    content = file.getvalue()
    content = (
        truncated(content, make.rng)
        if make.rng.random() < 0.2
        else flipped(content, make.rng, 0, None, 12)
    )
    return ["prepare", "classes", make.file("set.npz", content), "-o", "out/c.h5"]


@each(KIND, "bomb", "method", "encrypted", "climbing", "pickle", "empty", "single", "twice")
def a_hostile_archive_of_arrays(make: Making, what: Any) -> list[object]:
    path = make.folder / "set.npz"
    feature = "train_sketch_features.npy"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if what == "bomb":
            with archive.open(feature, "w", force_zip64=True) as member:
                member.write(header(said((10**8, 12))))
                for _ in range(256):
                    member.write(bytes(1 << 20))
        elif what == "climbing":
            archive.writestr("../../../escaped.npy", npy(np.zeros(3)))
        elif what == "pickle":
            archive.writestr("train_sketch_features", pickle.dumps(Canary(make.canary)))
        elif what != "empty":
            archive.writestr(feature, npy(np.zeros((16, 12))))
    if what in ("method", "encrypted"):
        content = bytearray(path.read_bytes())
        for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
            content[place : place + 4] = struct.pack(
                "<HH", int(what == "encrypted"), 99 if what == "method" else 8
            )
        path.write_bytes(bytes(content))
    if what == "single":
        path.write_bytes(npy(np.zeros((16, 12))))
    return ["prepare", "classes", path, "-o", "out/c.h5"]


@each(KIND, b"\xff\xfe", b"\0", b"a\n" * 100_000, b"[[[", allowed=MAYBE)
def a_list_of_seen_classes_that_is_none(make: Making, content: Any) -> list[object]:
    for split in ("train", "test"):
        for word in ("sketch", "image"):
            make.file(f"{split}_{word}_features.npy", npy(np.zeros((16, 12), np.float32)))
            make.file(
                f"{split}_{word}_labels.npy",
                npy(np.array([f"{split} {number % 4}" for number in range(16)])),
            )
    make.file("classes_seen.txt", content)
    return ["prepare", "classes", make.folder, "-o", "out/c.h5"]


# ---- IDX


def idx(*shape: int, content: bytes | None = None, magic: bytes = b"\0\0\x08") -> bytes:
    size = int(np.prod(shape, dtype=object))
    body = bytes(size) if content is None else content
    return magic + bytes([len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + body


@each(
    KIND,
    idx(4, 28, 28, magic=b"\0\0\x0d"),
    idx(4, 28, 28)[:-5],
    idx(4, 28, 28) + b"more",
    idx(2**32 - 1, 2**32 - 1, 2**32 - 1, content=b""),
    idx(2**32 - 1, 28, 28, content=b""),
    idx(4, 0, 0),
    idx(0, 28, 28),
    idx(5, 28, 28),
    idx(4, 28),
    idx(*[1] * 100),
    idx(*[2**32 - 1] * 255, content=b""),
    b"\0\0\x08\xff",
    b"",
    b"<html>",
)
def pictures_that_are_no_idx(make: Making, content: Any) -> list[object]:
    for split in ("train", "t10k"):
        make.file(f"{split}-labels-idx1-ubyte", idx(4))
        if make.rng.random() < 0.5:
            make.file(f"{split}-images-idx3-ubyte", content)
        else:
            make.file(f"{split}-images-idx3-ubyte.gz", gzip.compress(content))
    return ["prepare", "mnist-cdcb", make.folder, "-o", "out/m.h5"]


@each(
    KIND,
    b"\x1f\x8b",
    b"not gzip",
    gzip.compress(idx(4, 28, 28))[:-6],
    gzip.compress(idx(4, 28, 28))[:30],
)
def no_gzip(make: Making, content: Any) -> list[object]:
    for split in ("train", "t10k"):
        make.file(f"{split}-labels-idx1-ubyte", idx(4))
        make.file(f"{split}-images-idx3-ubyte.gz", content)
    return ["prepare", "mnist-cdcb", make.folder, "-o", "out/m.h5"]


@malformed(KIND)
def an_idx_that_inflates(make: Making) -> list[object]:
    """4 GiB of zeros behind a header of four pictures."""
    squeeze = gzip.compress(bytes(1 << 28), 1) * 16
    for split in ("train", "t10k"):
        make.file(f"{split}-labels-idx1-ubyte", idx(4))
        make.file(f"{split}-images-idx3-ubyte.gz", gzip.compress(idx(4, 28, 28)) + squeeze)
    return ["prepare", "mnist-cdcb", make.folder, "-o", "out/m.h5"]
