"""Parts of one list of inputs, encoded apart and joined again.

A shard is a run of whole batches, so that it computes what an undivided encoding would. Its cache
says which part it is of which list; joining checks that all parts are there, once each, of one
model, list and set of options, and copies them in the list's order, whatever the order they are
named in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.hdf5 import check_schema, damage, dataset, open_hdf5, read_texts, text_attributes
from iiae_cli.data.parts import Part, all_in_order
from iiae_cli.inference.latents import ARRAYS, REMEDY, SCHEMA, read_attributes, write_stream

COPY_BYTES = 1 << 24
OF_A_LIST = (
    "inputs",
    "inputs_content",
    "options",
)  # attributes that only the cache of one list has


@dataclass(frozen=True)
class Shard(Part):
    """Which part of a list of inputs.

    Attributes:
        start: position of its first input; `stop` that after its last.
        total: inputs in the list.
    """

    start: int
    stop: int
    total: int


def shard_of_list(index: int, count: int, total: int, batch_size: int) -> Shard:
    """The `index`-th, from 0, of `count` runs of whole batches; of single inputs where batches are
    too few.

    Raises:
        IiaeError: it would be empty.
    """
    batches = -(-total // batch_size)
    unit = batch_size if batches >= count else 1
    units = Part(index, count).of(-(-total // unit))
    start, stop = (min(total, unit * end) for end in (units.start, units.stop))
    if start == stop:
        raise IiaeError(f"shard {index}/{count} of {total} inputs is empty", "use fewer shards")
    return Shard(index, count, start, stop, total)


@dataclass(frozen=True)
class CacheFile:
    """A cache as a whole, its arrays unread.

    Attributes:
        path: the file.
        head: its attributes.
        arrays: (width, dtype) by names as in `Encoded`.
        ids: (N,).
        labels: (N,), where known.
        skipped: lines of inputs left out.
        shard: which part it is, where it is one.
    """

    path: Path
    head: dict[str, Any]
    arrays: dict[str, tuple[int, np.dtype[Any]]]
    ids: list[str]
    labels: list[str] | None
    skipped: list[str]
    shard: Shard | None

    def blocks(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Its arrays, some rows at a time."""
        width = sum(one * dtype.itemsize for one, dtype in self.arrays.values())
        rows = max(1, COPY_BYTES // max(1, width))
        with open_hdf5(self.path, REMEDY) as file:
            for start in range(0, len(self.ids), rows):
                with damage(self.path, REMEDY):
                    block = {
                        name: file[name.replace("_", "/")][start : start + rows]
                        for name in self.arrays
                    }
                    if not all(np.isfinite(values).all() for values in block.values()):
                        raise ValueError("it holds values that are not finite")
                yield block


def describe(path: Path) -> CacheFile:
    """A cache's attributes, texts and shapes.

    Raises:
        IiaeError: missing, damaged, or of another schema.
    """
    with open_hdf5(path, REMEDY) as file:
        check_schema(file, path, SCHEMA, REMEDY)
        with damage(path, REMEDY):
            head = {**text_attributes(file), **read_attributes(file)}
            head["source"] = json.dumps(head["source"])
            head["shared_shape"] = np.asarray(head["shared_shape"], np.int64)
            arrays: dict[str, tuple[int, np.dtype[Any]]] = {}
            lengths = set()
            for name in ARRAYS:
                data = dataset(file, name.replace("_", "/"))
                if data is not None:
                    count, width = data.shape
                    if width == 0 or data.dtype not in (np.float32, np.float16):
                        raise ValueError(f"{name} is {data.dtype}")
                    arrays[name] = (int(width), data.dtype)
                    lengths.add(count)
            ids, labels, skipped = (read_texts(file, name) for name in ("ids", "labels", "skipped"))
            shard = None
            if "shard" in head:
                shard = Shard(
                    **{key: int(value) for key, value in json.loads(str(head["shard"])).items()}
                )
                int(str(head["inputs_content"]), 16)
    if ids is None or lengths != {len(ids)} or (labels is not None and len(labels) != len(ids)):
        raise IiaeError(f"{path} is damaged: its arrays differ in length", REMEDY)
    return CacheFile(path, head, arrays, ids, labels, skipped or [], shard)


@dataclass(frozen=True)
class Merge:
    """Caches that belong together.

    Attributes:
        parts: in the order of their rows.
        head: attributes of the whole.
        arrays: of the whole, as in `CacheFile`.
    """

    parts: list[CacheFile]
    head: dict[str, Any]
    arrays: dict[str, tuple[int, np.dtype[Any]]]

    @property
    def ids(self) -> list[str]:
        """Of the whole."""
        return [one for part in self.parts for one in part.ids]

    def write(
        self, output: Path, *, folder: Path | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        """Write the whole, a few rows at a time.

        Args:
            output: an existing file is replaced.
            folder: for the temporary file; None: beside `output`.
            tick: called now and then; what it raises ends the work.

        Raises:
            IiaeError: a damaged part, a full disk, a value that the number format cannot hold.
        """

        def blocks() -> Iterator[dict[str, NDArray[Any]]]:
            for part in self.parts:
                for block in part.blocks():
                    tick()
                    yield _converted(block, self.arrays, part.path)

        labels = None
        if self.parts[0].labels is not None:
            labels = [one for part in self.parts for one in part.labels or []]
        skipped = [line for part in self.parts for line in part.skipped]
        write_stream(
            output,
            self.head,
            self.arrays,
            blocks(),
            ids=self.ids,
            labels=labels,
            skipped=skipped,
            folder=folder,
        )


def plan_merge(paths: Sequence[Path], dtype: str | None = None) -> Merge:
    """Join caches: shards in the order of their list, others in the order given.

    Args:
        paths: the caches.
        dtype: of the arrays; None: the caches' own, float32 where they differ.

    Raises:
        IiaeError: caches that do not belong together, shards that are missing or doubled, ids that
            occur twice.
    """
    parts = [describe(path) for path in paths]
    for part in parts[1:]:
        _refuse_strangers(part, parts[0])
    if any(part.shard is not None for part in parts):
        parts = _whole_list(parts)
        content = sum(int(str(part.head["inputs_content"]), 16) for part in parts)
        head = {**parts[0].head, "inputs_content": f"{content % 2**64:016x}"}
        del head["shard"]
    else:
        head = {key: value for key, value in parts[0].head.items() if key not in OF_A_LIST}
        _refuse_doubled(one for part in parts for one in part.ids)
    if any(str(part.head.get("source")) != str(head.get("source")) for part in parts):
        head["source"] = "{}"
    arrays = {
        name: (
            width,
            np.dtype(
                dtype or (own if all(part.arrays[name][1] == own for part in parts) else "float32")
            ),
        )
        for name, (width, own) in parts[0].arrays.items()
    }
    return Merge(parts, head, arrays)


def _refuse_doubled(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise IiaeError(f"id {one} occurs in more than one place", "merge every cache once")
        seen.add(one)


def _converted(
    block: dict[str, NDArray[Any]], arrays: Mapping[str, tuple[int, np.dtype[Any]]], path: Path
) -> dict[str, NDArray[Any]]:
    with np.errstate(over="ignore"):
        found = {name: values.astype(arrays[name][1], copy=False) for name, values in block.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise IiaeError(
                f"{name} in {path} holds values that {values.dtype} cannot hold",
                "pass --dtype float32",
            )
    return found


def _refuse_strangers(part: CacheFile, first: CacheFile) -> None:
    if part.head["fingerprint"] != first.head["fingerprint"]:
        raise IiaeError(
            f"{part.path} was encoded by another model than {first.path}", "encode all by one run"
        )
    if part.head["domain"] != first.head["domain"]:
        raise IiaeError(
            f"{part.path} holds domain {part.head['domain']}, {first.path} {first.head['domain']}",
            "merge one domain only",
        )
    widths, wanted = (
        {name: width for name, (width, _) in one.arrays.items()} for one in (part, first)
    )
    if widths != wanted or (part.labels is None) != (first.labels is None):
        raise IiaeError(
            f"{part.path} holds other arrays than {first.path}", "encode all by the same options"
        )


def _whole_list(parts: list[CacheFile]) -> list[CacheFile]:
    """Shards in order.

    Raises:
        IiaeError: not all of one list, each once.
    """
    first = parts[0]
    shards: list[tuple[Path, Part, CacheFile]] = []
    for part in parts:
        if part.shard is None or first.shard is None:
            lone = part if part.shard is None else first
            raise IiaeError(
                f"{lone.path} is no shard, others are",
                "merge the shards of one list, and nothing else",
            )
        if (
            part.head.get("inputs") != first.head.get("inputs")
            or part.shard.total != first.shard.total
        ):
            raise IiaeError(
                f"{part.path} was encoded from another list of inputs than {first.path}",
                "encode all shards from the same inputs",
            )
        if part.shard.count == first.shard.count and part.head.get("options") != first.head.get(
            "options"
        ):
            raise IiaeError(
                f"{part.path} was encoded with other options than {first.path}",
                "encode all by the same options",
            )
        shards.append((part.path, part.shard, part))
    ordered = all_in_order(shards, "encode the rest: iiae encode …")
    _refuse_gaps(ordered)
    return ordered


def _refuse_gaps(ordered: list[CacheFile]) -> None:
    end = total = 0
    for part in ordered:
        assert part.shard is not None
        if part.shard.start != end:
            raise IiaeError(
                f"{part.path} begins at input {part.shard.start}, the shard before ends at {end}",
                "encode all shards with the same --batch-size",
            )
        end, total = part.shard.stop, part.shard.total
    if end != total:
        raise IiaeError(
            f"the shards end at input {end} of {total}",
            "encode all shards with the same --batch-size",
        )


def shard_json(shard: Shard) -> str:
    """The attribute `shard`."""
    return json.dumps(asdict(shard))
