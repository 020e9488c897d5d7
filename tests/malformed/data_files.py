"""Prepared data files (HDF5) with wrong shapes, types, missing and hostile content, and damaged ones."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from malformed.cases import MAYBE, Making, each, flipped, malformed, truncated

KIND = "data files"
SPLITS = ("train", "valid", "test")
TERA = 10**12
Edit = Callable[[h5py.File], None]


def reading(
    make: Making, path: Path, commands: str = "train encode translate retrieve evaluate"
) -> list[object]:
    """One of the commands that read a data file of pictures."""
    run = ("--run", make.ground.run)
    return {
        "train": ["train", "--preset", make.ground.preset, "--data", path, "--run", "out/run"],
        "encode": ["encode", path, "--domain", "x", *run, "-o", "out/z.h5"],
        "translate": ["translate", path, "--from", "x", *run, "--limit", 2, "-o", "out/t"],
        "retrieve": ["retrieve", path, "--index", make.ground.run / "gallery.h5", *run],
        "evaluate": ["evaluate", "--data", path, *run, "--lpips", "none"],
    }[make.rng.choice(commands.split())]


def reading_features(make: Making, path: Path) -> list[object]:
    """One of the commands that read a data file of features by class."""
    run = ("--run", make.ground.feature_run)
    return make.rng.choice(
        [
            ["train", "--preset", make.ground.feature_preset, "--data", path, "--run", "out/run"],
            ["encode", path, "--domain", "x", *run, "-o", "out/z.h5"],
            ["evaluate", "--data", path, *run],
        ]
    )


def edited(make: Making, edit: Edit, source: Path | None = None) -> Path:
    """A good file, edited."""
    path = make.folder / "data.h5"
    shutil.copyfile(source or make.ground.pictures, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replaced(name: str, **dataset: Any) -> Edit:
    """An edit that replaces a dataset in every split."""

    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            if name in file[split]:
                del file[split][name]
            file[split].create_dataset(name, **dataset)

    return edit


# ---- shapes and types


@each(
    KIND,
    (),
    (8,),
    (8, 16),
    (8, 16, 16),
    (8, 16, 16, 3, 1),
    (8, 0, 16, 3),
    (8, 16, 16, 0),
)
def rows_of_another_shape(make: Making, shape: Any) -> list[object]:
    return reading(make, edited(make, replaced("x", data=np.zeros(shape, np.uint8))))


@each(
    KIND,
    *(
        "f8",
        "i2",
        ">u2",
        "f2",
        "?",
        "c16",
        "S3",
        "V3",
        h5py.string_dtype(),
        h5py.vlen_dtype(np.uint8),
    ),
    *(
        np.dtype([("r", "u1"), ("g", "u1")]),
        h5py.enum_dtype({"A": 1}, "u2"),
        h5py.ref_dtype,
        h5py.regionref_dtype,
    ),
)
def rows_of_another_type(make: Making, dtype: Any) -> list[object]:
    return reading(
        make, edited(make, replaced(make.rng.choice("xy"), shape=(8, 16, 16, 3), dtype=dtype))
    )


@each(KIND, *("x", "y", "x_ids", "y_ids"))
def something_is_missing(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            del file[split][name]

    return reading(make, edited(make, edit), "train evaluate")


@each(KIND, "x", "x_ids", "x_labels", "factors", "train", "test")
def a_group_where_an_array_belongs(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            place = file if name in SPLITS else file[split]
            if name == "factors" or (name in SPLITS and name in place):
                del place[name]
                place[name] = np.zeros(3)
            elif name not in SPLITS:
                del place[name]
                place.create_group(name)

    return reading(make, edited(make, edit), "train encode evaluate")


@malformed(KIND)
def no_split_at_all(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            del file[split]

    return reading(make, edited(make, edit))


@malformed(KIND)
def an_empty_file_of_the_schema(make: Making) -> list[object]:
    with h5py.File(make.folder / "data.h5", "w") as file:
        file.attrs["schema"] = "iiae.data/1"
    return reading(make, make.folder / "data.h5")


@malformed(KIND, times=2)
def no_rows(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            for name in list(file[split]):
                del file[split][name]
            for domain in "xy":
                file[split][domain] = np.zeros((0, 16, 16, 3), np.uint8)
                file[split].create_dataset(f"{domain}_ids", shape=(0,), dtype=h5py.string_dtype())

    return reading(make, edited(make, edit))


@each(KIND, None, np.int64(3), np.zeros(8), "not JSON", h5py.Empty("f4"))
def rows_without_extent(make: Making, value: Any) -> list[object]:
    return reading(
        make, edited(make, replaced("x", data=h5py.Empty("u1") if value is None else value))
    )


# ---- ids, labels, factors, pairs


@each(
    KIND,
    np.arange(8),
    np.zeros((8, 2), "S3"),
    np.zeros(8, [("a", "S2"), ("b", "i4")]),
    np.array(["one"] * 8, "S3").reshape(2, 4),
    np.bool_(True),
)
def ids_of_another_type(make: Making, values: Any) -> list[object]:
    return reading(
        make,
        edited(make, replaced(make.rng.choice(["x_ids", "y_ids"]), data=values)),
        "train evaluate",
    )


@each(KIND, 7, 9, 0)
def ids_of_another_number(make: Making, count: Any) -> list[object]:
    return reading(
        make, edited(make, replaced("x_ids", data=["a"] * count, dtype=h5py.string_dtype()))
    )


@each(KIND, 1 << 20, 1 << 24)
def one_id_of_megabytes(make: Making, length: Any) -> list[object]:
    return reading(
        make,
        edited(make, replaced("x_ids", data=["a" * length] + ["b"] * 7, dtype=h5py.string_dtype())),
    )


@malformed(KIND, times=2)
def a_heap_entry_that_all_ids_name(make: Making) -> list[object]:
    """100,000 references to one text of a megabyte: 100 GB from a file of 3 MB."""

    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            group = file[split]
            del group["x"], group["x_ids"]
            group.create_dataset("x", data=np.zeros((100_000, 16), np.uint8).reshape(-1, 1, 16, 1))
            texts = np.array([b"a" * (1 << 20), *[b"b"] * 99_999], object)
            group.create_dataset("x_ids", data=texts, dtype=h5py.string_dtype())

    path = edited(make, edit)
    with h5py.File(path, "r") as file:
        places = [
            (file[split]["x_ids"].id.get_offset(), len(file[split]["x_ids"])) for split in SPLITS
        ]
    with path.open("r+b") as raw:
        for offset, count in places:
            raw.seek(offset)
            first = raw.read(16)
            raw.seek(offset)
            raw.write(first * count)
    return reading(make, path, "train encode evaluate")


@each(
    KIND,
    [[0, 8]],
    [[-1, 0]],
    [[2**40, 0]],
    np.full((4, 2), 2**64 - 1, np.uint64),
    np.full((4, 2), np.nan),
    np.full((4, 2), 1e300),
    [0, 1, 2],
    np.zeros((4, 3), int),
    np.array([[b"a", b"b"]]),
    np.zeros((2, 2), [("a", "i4")]),
    np.float64(1),
    np.zeros((4, 2), "c16"),
)
def pairs_of_nowhere(make: Making, pairs: Any) -> list[object]:
    return reading(make, edited(make, replaced("pairs", data=pairs)), "train evaluate")


@each(KIND, np.float64(1), np.zeros(3), h5py.Empty("f4"), np.zeros((0, 3)))
def factors_of_another_length(make: Making, values: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            file[split]["factors"].create_dataset("size", data=values)

    return reading(make, edited(make, edit), "train evaluate")


@each(KIND, "group", "texts", "junk", "compound", "nan", allowed=MAYBE)
def factors_of_another_type(make: Making, what: Any) -> list[object]:
    """Factors that no probe can use are no obstacle where no probe asks for them."""

    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (24, 0, 8), strict=True):
            factors = file[split]["factors"]
            del factors["x_color"]
            if what == "group":
                factors.create_group("x_color")
            elif what == "texts":
                factors.create_dataset("x_color", data=["red"] * count, dtype=h5py.string_dtype())
            elif what == "junk":
                factors.create_dataset("x_color", shape=(count,), dtype=h5py.vlen_dtype(np.float64))
            elif what == "compound":
                factors["x_color"] = np.zeros(count, [("r", "u1"), ("g", "S2")])
            else:
                factors["x_color"] = np.full((count, 3), np.nan)

    path = edited(make, edit)
    return ["evaluate", "--data", path, "--run", make.ground.run, "--task", "disentanglement"]


# ---- attributes


ODD_VALUES: tuple[Any, ...] = (
    *(
        7,
        1.5,
        True,
        [1, 2, 3],
        np.zeros((3, 3)),
        h5py.Empty("S1"),
        np.array([b"a", b"b"]),
        np.bytes_(b"\xff\xfe"),
        "",
    ),
    *(
        np.zeros(2, [("a", "i4"), ("b", "f8")]),
        "../../../escaped",
        "x" * 60_000,
        "line\nerror: forged\x1b[31m",
    ),
    *("ref", "vlen", "opaque"),
)


def set_odd(file: h5py.File, name: str, value: Any) -> None:
    """An attribute of a type that nobody expects."""
    if isinstance(value, str) and value == "ref":
        file.attrs.create(name, file.ref, dtype=h5py.ref_dtype)
    elif isinstance(value, str) and value == "vlen":
        values = np.empty(1, object)
        values[0] = np.arange(3)
        file.attrs.create(name, values, dtype=h5py.vlen_dtype(np.int64))
    elif isinstance(value, str) and value == "opaque":
        file.attrs[name] = np.void(b"\0\1\2")
    else:
        file.attrs[name] = value


@each(KIND, *ODD_VALUES, None)
def a_schema_of_another_type(make: Making, value: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        del file.attrs["schema"]
        if value is not None:
            set_odd(file, "schema", value)

    return reading(make, edited(make, edit))


@each(KIND, *ODD_VALUES, allowed=MAYBE)
def a_name_of_another_type(make: Making, value: Any) -> list[object]:
    """A name only appears in messages, so that what can be read may pass."""
    return reading(make, edited(make, lambda file: set_odd(file, "name", value)))


@each(KIND, *ODD_VALUES, allowed=MAYBE)
def an_attribute_that_nobody_reads(make: Making, value: Any) -> list[object]:
    return reading(make, edited(make, lambda file: set_odd(file, "note", value)))


@each(
    KIND,
    *ODD_VALUES,
    "[" * 100_000,
    "{",
    "[1]",
    "null",
    '{"classes_seen": 5}',
    '{"classes_seen": [[1]]}',
    allowed=MAYBE,
)
def a_backbone_of_another_type(make: Making, value: Any) -> list[object]:
    path = edited(make, lambda file: set_odd(file, "backbone", value), make.ground.features)
    return ["evaluate", "--data", path, "--run", make.ground.feature_run]


@each(KIND, *ODD_VALUES, allowed=MAYBE)
def an_alignment_of_another_type(make: Making, value: Any) -> list[object]:
    return reading_features(
        make, edited(make, lambda file: set_odd(file, "alignment", value), make.ground.features)
    )


@malformed(KIND, times=3, allowed=frozenset({0, 2}))
def an_attribute_of_megabytes(make: Making) -> list[object]:
    """Attributes above 64 KiB lie in a heap of their own; nothing needs this one."""
    path = make.folder / "data.h5"
    with h5py.File(make.ground.pictures) as good, h5py.File(path, "w", libver="latest") as file:
        for split in SPLITS:
            good.copy(split, file)
        file.attrs.update(good.attrs)
        file.attrs["note"] = np.zeros(make.rng.randint(1 << 20, 1 << 23), np.uint8)
    return reading(make, path)


# ---- what leads elsewhere


@each(KIND, "x", "x_ids", "x_labels", "factors", "pairs")
def a_link_to_another_file(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            if name in file[split]:
                del file[split][name]
            file[split][name] = h5py.ExternalLink(str(make.ground.pictures), f"/{split}/{name}")

    return reading(make, edited(make, edit), "train evaluate")


@each(KIND, "train", "test", "valid")
def a_split_in_another_file(make: Making, split: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        del file[split]
        file[split] = h5py.ExternalLink(
            make.rng.choice([str(make.ground.pictures), "none.h5", "/etc/passwd"]), split
        )

    return reading(make, edited(make, edit))


@each(KIND, "/etc/passwd", "/dev/zero", "missing.raw")
def rows_stored_in_another_file(make: Making, place: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (24, 0, 8), strict=True):
            del file[split]["x"]
            size = max(1, count * 768)
            file[split].create_dataset("x", (count, 16, 16, 3), "u1", external=[(place, 0, size)])

    return reading(make, edited(make, edit))


@malformed(KIND)
def ids_stored_in_another_file(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (24, 0, 8), strict=True):
            del file[split]["x_ids"]
            file[split].create_dataset(
                "x_ids", (count,), "S20", external=[("/etc/passwd", 0, max(1, count * 20))]
            )

    return reading(make, edited(make, edit), "train encode evaluate")


@each(KIND, "another", "missing", "itself")
def rows_put_together_from_other_files(make: Making, which: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (24, 0, 8), strict=True):
            if count:
                del file[split]["x"]
                layout = h5py.VirtualLayout((count, 16, 16, 3), "u1")
                place = {"another": str(make.ground.pictures), "missing": "none.h5", "itself": "."}[
                    str(which)
                ]
                layout[:] = h5py.VirtualSource(place, f"/{split}/x", (count, 16, 16, 3), "u1")
                file[split].create_virtual_dataset("x", layout)

    return reading(make, edited(make, edit))


@each(KIND, "x", "x_ids", "train", "test", "factors", "pairs")
def links_in_a_circle(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for place in [file] if name in SPLITS else [file[split] for split in SPLITS]:
            if name in place:
                del place[name]
            place[name] = h5py.SoftLink(f"{place.name.rstrip('/')}/other")
            place["other"] = h5py.SoftLink(f"{place.name.rstrip('/')}/{name}")

    return reading(make, edited(make, edit), "train evaluate")


@each(KIND, "train", "factors")
def a_group_that_holds_itself(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            if name == "train":
                del file[split]["x"]
                file[split]["x"] = file[split]
            else:
                file[split]["factors"]["again"] = file[split]["factors"]

    return reading(make, edited(make, edit), "train evaluate")


# ---- bombs


@each(KIND, "x", "y", "x_ids", "x_labels", "pairs", "factor")
def an_array_declared_but_not_stored(make: Making, name: Any) -> list[object]:
    """10^12 rows without data, chunked or contiguous: some hundred bytes of file."""
    chunked = make.rng.random() < 0.5

    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            group = file[split]
            where = "factors/x_color" if name == "factor" else str(name)
            if where in group:
                del group[where]
            tail, dtype = {
                "x": ((16, 16, 3), "u1"),
                "y": ((16, 16, 3), "u1"),
                "pairs": ((2,), "i8"),
                "factor": ((3,), "u1"),
            }.get(str(name), ((), h5py.string_dtype()))
            options = {"chunks": (1024, *tail), "compression": "gzip"} if chunked else {}
            group.create_dataset(where, (TERA, *tail), dtype, **options)

    return reading(make, edited(make, edit), "train encode evaluate")


@each(KIND, (TERA, 16, 16, 3), (2**31, 16, 16, 3), (200_000, 256, 256, 3))
def pictures_declared_but_not_stored(make: Making, shape: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in SPLITS:
            for domain in "xy":
                del file[split][domain]
                file[split].create_dataset(
                    domain, shape, "u1", chunks=(1, *shape[1:]), fillvalue=make.rng.randrange(256)
                )

    return reading(make, edited(make, edit))


@malformed(KIND)
def rows_that_inflate_a_thousandfold(make: Making) -> list[object]:
    """Every chunk is there and says what it should: 64 MiB of zeros in 64 KB, hundreds of times."""
    chunk = zlib.compress(bytes(1 << 26), 9)

    def edit(file: h5py.File) -> None:
        count = 128
        for split in ("train", "test"):
            del file[split]["x"]
            rows = file[split].create_dataset(
                "x",
                (count << 12, 128, 128, 1),
                "u1",
                chunks=(1 << 12, 128, 128, 1),
                compression="gzip",
            )
            for one in range(count):
                rows.id.write_direct_chunk((one << 12, 0, 0, 0), chunk)

    return reading(make, edited(make, edit))


@malformed(KIND)
def a_filter_that_is_not_there(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (24, 0, 8), strict=True):
            group = file[split]
            del group["x"]
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((8, 16, 16, 3))
            plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
            space = h5py.h5s.create_simple((count, 16, 16, 3))
            rows = h5py.h5d.create(group.id, b"x", h5py.h5t.STD_U8LE, space, plist)
            for start in range(0, count, 8):
                rows.write_direct_chunk((start, 0, 0, 0), bytes(6144))

    return reading(make, edited(make, edit))


# ---- values


@each(KIND, np.nan, np.inf, -np.inf)
def features_that_are_not_finite(make: Making, value: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split in ("train", "test"):
            rows = file[split][make.rng.choice("x")]
            rows[make.rng.randrange(len(rows)), make.rng.randrange(12)] = value

    return reading_features(make, edited(make, edit, make.ground.features))


@malformed(KIND, times=2, allowed=MAYBE)
def features_beyond_all_measure(make: Making) -> list[object]:
    """Finite, so that they may pass; what comes of them may overflow and must then be named."""

    def edit(file: h5py.File) -> None:
        for split in ("train", "test"):
            file[split]["x"][...] = np.float32(3e38) * make.numbers.choice(
                [-1, 1], file[split]["x"].shape
            )

    return reading_features(make, edited(make, edit, make.ground.features))


@each(KIND, 0, 1, 11, 13, 100_000)
def features_of_another_width(make: Making, width: Any) -> list[object]:
    """A model of its own can be trained on any width but none."""

    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (32, 0, 16), strict=True):
            del file[split]["x"]
            file[split]["x"] = np.zeros((count, width), np.float32)

    path = edited(make, edit, make.ground.features)
    return ["encode", path, "--domain", "x", "--run", make.ground.feature_run, "-o", "out/z.h5"]


@malformed(KIND)
def features_without_width_to_train_on(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        for split, count in zip(SPLITS, (32, 0, 16), strict=True):
            del file[split]["x"]
            file[split]["x"] = np.zeros((count, 0), np.float32)

    path = edited(make, edit, make.ground.features)
    return ["train", "--preset", make.ground.feature_preset, "--data", path, "--run", "out/run"]


# ---- damage


@malformed(KIND, times=12)
def a_truncated_file(make: Making) -> list[object]:
    return reading(
        make, make.file("data.h5", truncated(make.ground.pictures.read_bytes(), make.rng))
    )


@malformed(KIND, times=15, allowed=MAYBE)
def a_damaged_superblock(make: Making) -> list[object]:
    return reading(
        make, make.file("data.h5", flipped(make.ground.pictures.read_bytes(), make.rng, 0, 96, 3))
    )


@malformed(KIND, times=30, allowed=MAYBE)
def damaged_structures(make: Making) -> list[object]:
    """In B-trees, headers and heaps, which lie between arrays; pixels, most of the file, are zeros here."""
    content = make.ground.pictures.read_bytes()
    return reading(make, make.file("data.h5", flipped(content, make.rng, 0, 6000, 6)))


@malformed(KIND, times=10, allowed=MAYBE)
def damage_anywhere(make: Making) -> list[object]:
    content = make.ground.features.read_bytes()
    return reading_features(make, make.file("data.h5", flipped(content, make.rng, most=40)))


@each(
    KIND,
    b"",
    b"\x89HDF\r\n\x1a\n",
    b"\x89HDF\r\n\x1a\n" + bytes(4096),
    b"x,y\n1,2\n",
    b"PK\x03\x04" + bytes(100),
)
def no_such_file_format(make: Making, content: Any) -> list[object]:
    return reading(make, make.file("data.h5", content))


@each(KIND, "folder", "pipe", "circle", "/dev/zero", "/dev/null")
def no_file_at_all(make: Making, what: Any) -> list[object]:
    path = make.folder / "data.h5"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "circle":
        path.symlink_to(path)
    else:
        path.symlink_to(what)
    return reading(make, path)
