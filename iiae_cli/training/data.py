"""What a run learns from: training rows, their order, and what is held out for validation."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config
from iiae_cli.data.datafile import DataFile, Rows, Split
from iiae_cli.data.orders import ClassOrder, PairOrder

Indices: TypeAlias = NDArray[np.int64]

PAIRED_BATCH = 8  # the paper's, where none is configured and rows are paired one by one
FEWEST_CLASSES = 8  # with fewer no class is held out


class TrainingData:
    """The training and validation rows of a data file, as the configuration divides them.

    Sets that are paired one by one hold out pairs; sets that are paired by class hold out whole
    classes, so that validation asks what zero-shot evaluation will ask.

    Attributes:
        file: what the rows lie in.
        info: of it.
        train: rows to train on (all of the split where pairs are held out; `order` leaves those
            out).
        validation: aligned pairs, or rows of held-out classes; None where nothing is held out.

    Raises:
        IiaeError: nothing to train on, or rows that are paired neither one by one nor by class.
    """

    def __init__(self, file: DataFile, config: Config) -> None:
        self.file = file
        self.info = file.info
        self.by_class = file.info.by_class
        self.train = file.split("train")
        if self.train.pair_count == 0 or not len(self.train.y):
            raise IiaeError(
                f"{file.path} has no training rows", "prepare the set again, or name another file"
            )
        if (
            not self.by_class
            and self.train.pairs is None
            and len(self.train.x) != len(self.train.y)
        ):
            raise IiaeError(
                f"{file.path} is not paired: {len(self.train.x)} rows of x, "
                f"{len(self.train.y)} of y in train",
                "pair it one by one (iiae prepare pairs SOURCE) "
                "or by class (iiae prepare classes SOURCE)",
            )
        self._all = self.train
        self._kept: Indices | None = None  # pairs to train on; None: all of them
        self.validation: Split | None = None
        most, valid = config.selection.validation_pairs, file.split("valid")
        if self.by_class:
            self._hold_out_classes(config, valid)
        elif config.selection.validate_on == "train":
            self.validation = _some_pairs(self.train, np.arange(self.train.pair_count), most)
        elif valid.pair_count:
            self.validation = _some_pairs(valid, np.arange(valid.pair_count), most)
        elif config.data.holdout and self.train.pair_count >= 4:
            self._kept, held = hold_out(self.train.pair_count, config.data.holdout, fewest=2)
            self.validation = _some_pairs(self.train, held, most)

    def _hold_out_classes(self, config: Config, valid: Split) -> None:
        most = config.selection.validation_pairs
        if config.selection.validate_on == "train":
            self.validation = _some_rows(self.train, most)
            return
        if len(valid.x) and len(valid.y):
            self.validation = _some_rows(valid, most)
            return
        labels_x, labels_y = _labels(self.train)
        classes = np.intersect1d(labels_x, labels_y)
        if config.data.holdout and len(classes) >= FEWEST_CLASSES:
            _, held = hold_out(len(classes), config.data.holdout, fewest=2)
            in_x, in_y = (np.isin(labels, classes[held]) for labels in (labels_x, labels_y))
            self.validation = _some_rows(
                self.train.take(np.flatnonzero(in_x), np.flatnonzero(in_y)), most
            )
            self.train = self.train.take(np.flatnonzero(~in_x), np.flatnonzero(~in_y))

    @property
    def count(self) -> int:
        """Training pairs; rows of x where the set is paired by class."""
        return self.train.pair_count if self._kept is None else len(self._kept)

    @property
    def classes(self) -> list[str]:
        """Classes that both domains have training rows of."""
        labels_x, labels_y = _labels(self.train)
        return sorted({*labels_x} & {*labels_y})

    @property
    def holds_out(self) -> bool:
        """Whether rows of the training split are kept for validation."""
        return self._kept is not None or self.train is not self._all

    def use_all(self) -> None:
        """Train on the held-out rows too; nothing is left to validate on."""
        self.train, self._kept, self.validation = self._all, None, None

    def order(self, batch_size: int | None, seed: int) -> PairOrder | ClassOrder:
        """What each step reads.

        Raises:
            IiaeError: fewer pairs than a batch, or fewer than two classes.
        """
        try:
            if self.by_class:
                return ClassOrder(*_labels(self.train), batch_size, seed)
            return PairOrder(self.count, batch_size or PAIRED_BATCH, seed)
        except ValueError as error:
            hint = f"pass --batch-size {max(2, self.count // 4)}, or prepare more pairs"
            if self.by_class:
                hint = "give both domains pictures of the same classes"
            raise IiaeError(str(error), hint) from error

    def rows(self, indices: Indices) -> tuple[Rows, Rows]:
        """x and y rows of what `order` names: pairs (B,), or rows of x and y (B, 2)."""
        rows_x, rows_y = self.row_numbers(indices)
        return self.train.x.rows[rows_x], self.train.y.rows[rows_y]

    def row_numbers(self, indices: Indices) -> tuple[Indices, Indices]:
        """Which rows of x and of y (B,) those are."""
        if not self.by_class:
            indices = indices if self._kept is None else self._kept[indices]
            if self.train.pairs is None:
                return indices, indices
            indices = self.train.pairs[indices]
        return indices[:, 0], indices[:, 1]

    def pair_labels(self) -> tuple[Rows, Rows, list[str], list[str]]:
        """All training rows of x and y with what they share: their classes, or each pair a class of
        its own.
        """
        if self.by_class:
            return self.train.x.rows, self.train.y.rows, *_labels(self.train)
        x, y = self.rows(np.arange(self.count))
        names = [str(number) for number in range(self.count)]
        return x, y, names, names

    def summary(self) -> str:
        """One line that says what is learned from."""
        shapes = [" x ".join(map(str, shape)) for shape in (self.info.shape_x, self.info.shape_y)]
        held = self.validation
        if not self.by_class:
            counts = (
                f"{self.count} training pairs, {0 if held is None else len(held.x)} for validation"
            )
        else:
            valid = "none" if held is None else _sizes(held)
            counts = f"{_sizes(self.train)} to train on, {valid} for validation"
        return f"{self.info.name}: {counts}; x {shapes[0]}, y {shapes[1]}"


def hold_out(count: int, fraction: float, *, fewest: int, seed: int = 0) -> tuple[Indices, Indices]:
    """Divide 0…N−1 into (training, validation) indices, both ascending; at least `fewest`
    validate.
    """
    held = max(fewest, round(count * fraction))
    order = np.random.default_rng((seed, count)).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _labels(split: Split) -> tuple[list[str], list[str]]:
    return split.x.labels or [], split.y.labels or []


def _sizes(split: Split) -> str:
    classes = len({*(split.x.labels or [])} & {*(split.y.labels or [])})
    return f"{classes} classes ({len(split.x)} rows of x, {len(split.y)} of y)"


def _some(count: int, most: int) -> Indices:
    return (
        np.arange(count)
        if count <= most
        else np.sort(np.random.default_rng(0).permutation(count)[:most])
    )


def _some_pairs(split: Split, candidates: NDArray[Any], most: int) -> Split:
    return split.take_pairs(candidates[_some(len(candidates), most)])


def _some_rows(split: Split, most: int) -> Split:
    return split.take(_some(len(split.x), most), _some(len(split.y), most))
