"""Latent caches (HDF5), as gallery, as query, and as parts to be merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from malformed.cases import ACCEPTED, MAYBE, Making, each, flipped, malformed, truncated
from malformed.data_files import ODD_VALUES, TERA, set_odd

KIND = "latent caches"


def edited(make: Making, edit: Callable[[h5py.File], None]) -> Path:
    """A good cache of x, edited."""
    path = make.folder / "z.h5"
    shutil.copyfile(make.ground.cache, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def reading(make: Making, path: Path) -> list[object]:
    """One of the commands that read a cache."""
    gallery = make.ground.run / "gallery.h5"
    return make.rng.choice(
        [
            ["retrieve", make.ground.cache, "--index", path],
            ["retrieve", path, "--index", gallery],
            ["retrieve", make.ground.picture, "--index", path, "--run", make.ground.run],
            ["encode", path, "--merge", "-o", "out/z.h5"],
            ["retrieve", path, "--index", gallery, "--montage", "out/m.png"],
        ]
    )


def replaced(name: str, **dataset: Any) -> Callable[[h5py.File], None]:
    """An edit that replaces a dataset."""

    def edit(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, **dataset)

    return edit


@each(KIND, (), (8,), (8, 0), (8, 4, 16), (7, 64), (9, 64), (0, 64), (1, 1, 1, 8, 64))
def means_of_another_shape(make: Making, shape: Any) -> list[object]:
    return reading(make, edited(make, replaced("shared/mean", data=np.zeros(shape, np.float32))))


@malformed(KIND, times=2)
def means_of_another_width(make: Making) -> list[object]:
    path = edited(
        make, replaced("shared/mean", data=np.zeros((8, make.rng.choice([1, 63, 65])), np.float32))
    )
    return ["retrieve", make.ground.cache, "--index", path]


@each(
    KIND,
    "S4",
    h5py.string_dtype(),
    "V4",
    "c16",
    h5py.vlen_dtype(np.float32),
    [("a", "f4")],
    h5py.ref_dtype,
)
def means_of_another_type(make: Making, dtype: Any) -> list[object]:
    return reading(
        make, edited(make, replaced("shared/mean", shape=(8, 64), dtype=np.dtype(dtype)))
    )


@each(KIND, np.nan, np.inf, -np.inf)
def means_that_are_not_finite(make: Making, value: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        file["shared/mean"][make.rng.randrange(8), 3] = value

    return reading(make, edited(make, edit))


@malformed(KIND, times=2)
def means_too_large_for_float32(make: Making) -> list[object]:
    return reading(make, edited(make, replaced("shared/mean", data=np.full((8, 64), 1e300))))


@each(KIND, "shared", "exclusive", "ids", "labels")
def a_group_for_an_array(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        is_group = isinstance(file[name], h5py.Group)
        del file[name]
        if is_group:
            file[name] = np.zeros((8, 4))
        else:
            file.create_group(name)

    return reading(make, edited(make, edit))


@each(KIND, "ids", "shared", "domain", "fingerprint", "shared_shape", "schema")
def something_is_missing(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        if name == "shared":
            del file["shared"], file["exclusive"]
        elif name in file:
            del file[name]
        else:
            del file.attrs[name]

    return reading(make, edited(make, edit))


@each(KIND, "mean2", "x" * 5000, allowed=frozenset({0, 2}))
def a_part_that_nobody_knows(make: Making, name: Any) -> list[object]:
    """A later version may keep more; what only reads means need not know it."""

    def edit(file: h5py.File) -> None:
        file["shared"].create_group(f"{name}/more")

    return reading(make, edited(make, edit))


@each(KIND, np.arange(8), np.zeros((8, 2), "S2"), np.bytes_(b"one"), np.zeros(8, [("a", "S2")]))
def names_of_another_type(make: Making, values: Any) -> list[object]:
    return reading(make, edited(make, replaced("ids", data=values)))


@each(KIND, 0, 7, 9)
def names_of_another_number(make: Making, count: Any) -> list[object]:
    name = make.rng.choice(["ids", "labels"])
    return reading(
        make, edited(make, replaced(name, data=["a"] * count, dtype=h5py.string_dtype()))
    )


@each(KIND, *["schema", "domain", "fingerprint"] * 3)
def an_attribute_of_another_type(make: Making, name: Any) -> list[object]:
    value = make.rng.choice(ODD_VALUES)
    path = edited(make, lambda file: set_odd(file, name, value))
    return ["retrieve", make.ground.cache, "--index", path]


@malformed(KIND, times=4, allowed=frozenset({0, 2}))
def a_shared_shape_of_another_kind(make: Making) -> list[object]:
    """Some of these are lists of numbers."""
    value = make.rng.choice(ODD_VALUES)
    path = edited(make, lambda file: set_odd(file, "shared_shape", value))
    return ["retrieve", make.ground.cache, "--index", path]


@each(KIND, *ODD_VALUES, allowed=MAYBE)
def a_metric_or_preset_of_another_type(make: Making, value: Any) -> list[object]:
    """Both may be absent: what cannot be read as one is no obstacle."""
    return reading(
        make, edited(make, lambda file: set_odd(file, make.rng.choice(["metric", "preset"]), value))
    )


SOURCES: tuple[Any, ...] = (
    *(
        "[]",
        "5",
        "null",
        '"text"',
        "{",
        "[" * 60_000,
        '{"data": 5}',
        '{"data": ["a"]}',
        '{"data": "/etc/passwd"}',
    ),
    *(
        '{"data": "/dev/zero"}',
        '{"data": "' + "a" * 5000 + '"}',
        '{"data": "\\u0000"}',
        '{"split": "none"}',
    ),
)


@each(KIND, *SOURCES, allowed=frozenset({0, 2}))
def a_source_that_leads_astray(make: Making, text: Any) -> list[object]:
    """Where rows came from is asked for by montages alone."""
    path = edited(make, lambda file: file.attrs.__setitem__("source", text))
    gallery = make.ground.run / "gallery.h5"
    return ["retrieve", path, "--index", gallery, "--montage", "out/m.png"]


@malformed(KIND, times=2, allowed=ACCEPTED)
def ids_that_are_no_utf8(make: Making) -> list[object]:
    """They are names of files, which are any bytes."""
    names = np.array([b"\xed\xa0\x80%d" % number for number in range(8)], object)
    return reading(make, edited(make, replaced("ids", data=names, dtype=h5py.string_dtype())))


@each(
    KIND,
    *(
        "/etc/passwd",
        "../" * 40 + "etc/passwd",
        "\n\t\x1b[2J",
        "a" * 5000,
        "/dev/zero",
        "",
        "/dev/stdin",
    ),
    allowed=ACCEPTED,
)
def ids_that_are_paths_to_anything(make: Making, name: Any) -> list[object]:
    """Pictures that cannot be shown are left blank."""

    def edit(file: h5py.File) -> None:
        file.attrs["source"] = json.dumps({"pictures": True})
        del file["ids"]
        names = [f"{name}{'0' * number}" for number in range(8)]
        file.create_dataset("ids", data=names, dtype=h5py.string_dtype())

    path = edited(make, edit)
    return ["retrieve", path, "--index", make.ground.run / "gallery.h5", "--montage", "out/m.png"]


@each(KIND, "shared/mean", "ids", "labels")
def an_array_declared_but_not_stored(make: Making, name: Any) -> list[object]:
    tail, dtype = ((64,), "f4") if name == "shared/mean" else ((), h5py.string_dtype())
    options = {"chunks": (4096, *tail), "compression": "gzip"} if make.rng.random() < 0.5 else {}
    return reading(
        make, edited(make, replaced(str(name), shape=(TERA, *tail), dtype=dtype, **options))
    )


@each(KIND, "shared/mean", "ids", "shared")
def a_link_to_another_file(make: Making, name: Any) -> list[object]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = h5py.ExternalLink(
            make.rng.choice([str(make.ground.cache), "/etc/passwd"]), name
        )

    return reading(make, edited(make, edit))


@malformed(KIND)
def means_stored_in_another_file(make: Making) -> list[object]:
    return reading(
        make,
        edited(
            make,
            replaced("shared/mean", shape=(8, 64), dtype="f4", external=[("/etc/passwd", 0, 2048)]),
        ),
    )


@malformed(KIND, times=2)
def links_in_a_circle(make: Making) -> list[object]:
    def edit(file: h5py.File) -> None:
        name = make.rng.choice(["shared", "ids", "shared/mean"])
        del file[name]
        file[name] = h5py.SoftLink(f"/{name}")

    return reading(make, edited(make, edit))


@malformed(KIND, times=6)
def a_truncated_file(make: Making) -> list[object]:
    return reading(make, make.file("z.h5", truncated(make.ground.cache.read_bytes(), make.rng)))


@malformed(KIND, times=25, allowed=MAYBE)
def a_damaged_file(make: Making) -> list[object]:
    return reading(
        make, make.file("z.h5", flipped(make.ground.cache.read_bytes(), make.rng, most=20))
    )


@malformed(KIND, times=2)
def a_data_file_for_a_cache(make: Making) -> list[object]:
    path = make.rng.choice([make.ground.pictures, make.ground.features])
    return ["retrieve", make.ground.cache, "--index", path]
