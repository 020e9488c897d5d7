"""Encodes many rows at the speed of the forward pass: the next rows are read meanwhile.

A job's rows are divided into numbered blocks of a few batches. One call, a resumed call and shards
make the same blocks, so all run the same batches, and memory holds a few blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli import __version__
from iiae_cli.common.errors import NEVER, IiaeError, Stop
from iiae_cli.data.blocks import Arrays, BlockStore, Part, PartFile, in_order
from iiae_cli.data.hubs import INPUT_SIZE
from iiae_cli.data.pictures import ahead
from iiae_cli.inference.inputs import Block, Inputs, none_read
from iiae_cli.inference.latents import Gallery, LatentCache, LatentFormat, write_stream
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain
from iiae_cli.runs import LoadedModel


def batch_size_for(size: tuple[int, int] | None) -> int:
    """Returns how many rows of this size (H, W), or features (None), fit into a core's caches."""
    return 256 if size is None else max(8, min(64, (1 << 20) // (size[0] * size[1])))


@dataclass(frozen=True)
class EncodeJob:
    """Rows, and the model that encodes them."""

    trained: TrainedModel
    inputs: Inputs
    form: LatentFormat
    batch_size: int
    head: dict[str, Any]  # attributes of the cache

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        inputs: Inputs,
        domain: Domain,
        form: LatentFormat,
        batch_size: int | None,
    ) -> EncodeJob:
        """Returns the job that encodes all inputs of a domain by a run's model."""
        head = LatentCache.head_of(loaded, domain, inputs.source).attributes()
        size = loaded.size or (INPUT_SIZE if inputs.source.get("pictures") else None)
        batch_size = batch_size or batch_size_for(size)
        return cls(TrainedModel.of(loaded), inputs, form, batch_size, head)

    @property
    def block_rows(self) -> int:
        """Rows in a block: about a second's work, so that signals are answered soon."""
        return self.batch_size * (4 if self.batch_size >= 64 else 1)

    @property
    def total(self) -> int:
        """Number of blocks."""
        return -(-self.inputs.total // self.block_rows)

    def settings(self) -> dict[str, Any]:
        """Returns everything that decides the values, as JSON; errors name the keys."""
        head = {name.replace("_", " "): value for name, value in self.head.items()}
        settings = {
            "model": head.pop("fingerprint"),
            **head,
            "options": asdict(self.form),
            **self.inputs.digests(),
            "batch size": self.batch_size,
            "version": __version__,
        }
        return dict(json.loads(json.dumps(settings)))

    def rows_of(self, numbers: range) -> range:
        """Returns the positions of the inputs in a range of blocks."""
        stop = min(self.inputs.total, numbers.stop * self.block_rows)
        return range(min(stop, numbers.start * self.block_rows), stop)

    def make(self, store: BlockStore, numbers: range, stop: Stop = NEVER) -> None:
        """Encodes the blocks that the store lacks.

        Raises IiaeError if a block cannot be stored; an interruption keeps finished blocks.
        """

        def made(missing: list[int]) -> Iterator[Arrays]:
            parts = [self.rows_of(range(number, number + 1)) for number in missing]
            read = ahead(lambda part: self.inputs.read(part.start, part.stop), parts)
            return map(self._encoded, read)

        sizes = {number: len(self.rows_of(range(number, number + 1))) for number in numbers}
        store.fill(sizes, made, "encoding", stop)

    def _encoded(self, block: Block) -> dict[str, NDArray[Any]]:
        """Returns texts (empty columns left out) and latents."""
        texts = {"ids": block.ids, "labels": block.labels, "skipped": block.skipped}
        arrays = {name: np.array(column, np.str_) for name, column in texts.items() if column}
        if block.ids:
            encoded = self.trained.encode(
                block.rows,
                self.head["domain"],
                shared="shared" in self.form.kinds,
                exclusive="exclusive" in self.form.kinds,
                batch_size=self.batch_size,
            )
            arrays |= self.form.stored(encoded, block.ids)
        return arrays


def write_blocks(
    path: Path, job: EncodeJob, store: BlockStore, part: Part | None = None
) -> tuple[int, list[str]]:
    """Writes the cache of a job, or of a part of it, from the store's blocks.

    Returns the number of rows, and a line for every skipped input; raises IiaeError if no input of
    the whole job could be read.
    """
    numbers = (part or Part(0, 1)).of(job.total)
    texts: dict[str, list[str]] = {"ids": [], "labels": [], "skipped": []}
    for block in map(store.read, numbers):
        for name, column in texts.items():
            column += block[name].tolist() if name in block else []
    arrays = (
        {name: values for name, values in block.items() if name not in texts}
        for block in map(store.read, numbers)
        if "ids" in block
    )
    head = {**job.head, "job": json.dumps(store.job, sort_keys=True)}
    if part is not None:
        head["part"] = [part.index, part.count, job.total]
    elif not texts["ids"]:
        raise none_read(texts["skipped"])
    write_stream(path, head, texts, arrays, folder=store.folder)
    return len(texts["ids"]), texts["skipped"]


def read_shards(paths: Sequence[str]) -> list[Gallery]:
    """Returns all shards of a job, in order; raises IiaeError unless each is named once."""
    shards = {Path(path): Gallery(Path(path)) for path in paths}
    files = []
    for path, shard in shards.items():
        if shard.part is None:
            raise IiaeError(f"{path} is not a shard", "name the files that --shard I/N wrote")
        files.append(PartFile(path, shard.part, shard.total, shard.job, {}))
    return [shards[file.path] for file in in_order(files, "iiae encode …")]


def write_merged(path: Path, shards: Sequence[Gallery]) -> tuple[int, list[str]]:
    """Writes the cache that these shards make up, in order; otherwise as `write_blocks`."""
    texts = {
        name: [text for shard in shards for text in getattr(shard.head, name) or ()]
        for name in ("ids", "labels", "skipped")
    }
    if not texts["ids"]:
        raise none_read(texts["skipped"])
    head = {**shards[0].head.attributes(), "job": json.dumps(shards[0].job, sort_keys=True)}
    write_stream(path, head, texts, (block for shard in shards for block in shard.blocks()))
    return len(texts["ids"]), texts["skipped"]
