"""Encoding many rows at the pace of the forward pass: the next ones are read meanwhile.

The rows of a job are numbered blocks of a few batches each, whoever makes them: one call, a resumed
one, or shards. All of them therefore run the same batches, and a merge has the values of one call.
Memory holds a few blocks, for a thousand rows as for a million.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_cli import __version__
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.signals import NEVER, Stop
from iiae_cli.data.blocks import Arrays, BlockStore, Part, PartFile, in_order
from iiae_cli.inference.inputs import Block, Inputs, none_read
from iiae_cli.inference.latents import Gallery, LatentFormat, write_stream
from iiae_cli.inference.trained import TrainedModel
from iiae_cli.model import Domain
from iiae_cli.runs.weights import LoadedModel

_HEAD = ("domain", "shared_shape", "preset", "metric", "source")


def batch_size_for(size: tuple[int, int] | None) -> int:
    """Returns a number of rows that a core's caches hold, by the size (H, W); None for features.

    On a CPU the paper's 256×256 networks are fastest with few pictures at once; a GPU is not slowed
    down by 16.
    """
    return 256 if size is None else max(8, min(64, (1 << 20) // (size[0] * size[1])))


@dataclass(frozen=True)
class EncodeJob:
    """Rows and what encodes them."""

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
        """Returns the job of encoding all inputs of a domain by a run's model."""
        head = {
            "fingerprint": loaded.fingerprint,
            "domain": domain,
            "shared_shape": loaded.model.shared_shape,
            "preset": loaded.details.get("preset") or "",
            "metric": loaded.metric,
            "source": inputs.source,
        }
        batch_size = batch_size or batch_size_for(loaded.size)
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
        settings = {
            **{name.replace("_", " "): self.head[name] for name in _HEAD},
            "model": self.head["fingerprint"],
            "options": asdict(self.form),
            **self.inputs.digests(),
            "batch size": self.batch_size,
            "version": __version__,
        }
        return dict(json.loads(json.dumps(settings)))

    def rows_of(self, numbers: range) -> range:
        """Returns the positions of the inputs in a run of blocks."""
        stop = min(self.inputs.total, numbers.stop * self.block_rows)
        return range(min(stop, numbers.start * self.block_rows), stop)

    def make(self, store: BlockStore, numbers: range, stop: Stop = NEVER) -> None:
        """Encodes those of these blocks that the store does not have.

        Raises:
            IiaeError: the disk is full, or a number format cannot hold a latent.
            Interrupted: a signal came; what was encoded is in the store.
        """
        missing, total = store.missing(numbers), len(self.rows_of(numbers))
        parts = [self.rows_of(range(number, number + 1)) for number in missing]
        done = total - sum(map(len, parts))
        with console.progress("encoding", total, "inputs") as bar:
            if done:
                console.say(f"resuming at input {done} of {total}")
            bar.start_at(done)
            for number, block in zip(missing, self._blocks(parts), strict=True):
                saved = f"{done} of {total} inputs are saved in {store.folder}"
                stop.check(f"{saved}; continue with the same command and --resume")
                store.append(number, self._encoded(block))
                done += len(block.ids) + len(block.skipped)
                bar.update(done)

    def _blocks(self, parts: Iterable[range]) -> Iterator[Block]:
        """Yields the rows at these positions; a thread reads the next ones meanwhile."""
        with ThreadPoolExecutor(1, "ahead") as pool:
            coming: Future[Block] | None = None
            for part in parts:
                previous, coming = coming, pool.submit(self.inputs.read, part.start, part.stop)
                if previous is not None:
                    yield previous.result()
            if coming is not None:
                yield coming.result()

    def _encoded(self, block: Block) -> Arrays:
        """Returns ids, labels where known, lines of what was left out, and latents."""
        arrays: Arrays = {"ids": _texts(block.ids), "skipped": _texts(block.skipped)}
        if block.labels is not None:
            arrays["labels"] = _texts(block.labels)
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
) -> dict[str, list[str]]:
    """Writes the cache of a job, or of a part of it, whose blocks are in the store.

    Returns its texts. Raises IiaeError if not one input of the whole job could be read.
    """
    numbers = (part or Part(0, 1)).of(job.total)
    texts: dict[str, list[str]] = {"ids": [], "labels": [], "skipped": []}
    for block in map(store.read, numbers):
        for name, column in texts.items():
            column += block[name].tolist() if name in block else []
    if part is None and not texts["ids"]:
        raise none_read(texts["skipped"])
    arrays = (
        {name: values for name, values in block.items() if name not in texts}
        for block in map(store.read, numbers)
        if len(block["ids"])
    )
    head = {**job.head, "job": json.dumps(store.job, sort_keys=True)}
    if part is not None:
        head["part"] = [part.index, part.count, job.total]
    write_stream(path, head, texts, arrays, folder=store.folder)
    return texts


def read_shards(paths: Sequence[str]) -> list[Gallery]:
    """Returns all shards of a job, in order; raises IiaeError unless each is named once."""
    shards = {Path(path): Gallery(Path(path)) for path in paths}
    files = []
    for path, shard in shards.items():
        if shard.part is None:
            raise IiaeError(f"{path} is no shard", "name the files that --shard I/N wrote")
        files.append(PartFile(path, shard.part, shard.total, shard.job, {}))
    return [shards[file.path] for file in in_order(files, "iiae encode …")]


def write_merged(path: Path, shards: Sequence[Gallery]) -> dict[str, list[str]]:
    """Writes the cache that shards make up in this order; returns its texts.

    Raises:
        IiaeError: not one input could be read, or the file cannot be written.
    """
    columns = [shard.columns() for shard in shards]
    texts = {name: [text for column in columns for text in column[name]] for name in columns[0]}
    if not texts["ids"]:
        raise none_read(texts["skipped"])
    head = {**shards[0].head.head(), "job": json.dumps(shards[0].job, sort_keys=True)}
    write_stream(path, head, texts, (block for shard in shards for block in shard.blocks()))
    return texts


def _texts(texts: Sequence[str]) -> NDArray[Any]:
    return np.array(texts, np.str_) if texts else np.empty(0, "<U1")
