"""What a run learns from: training rows, their order, and what is held out for validation."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from iiae_cli.common.errors import IiaeError
from iiae_cli.config.schema import Config
from iiae_cli.data.batches import ClassOrder, PairOrder
from iiae_cli.data.datafile import DataFile, Rows, Split

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
        self.file, self.info, self.by_class = file, file.info, file.info.by_class
        self.train = self._all = file.split("train")
        _refuse_unusable(self.train, file, by_class=self.by_class)
        self._kept: Indices | None = None  # pairs to train on; None: all of them
        self.validation: Split | None = None
        most, valid = config.selection.validation_pairs, file.split("valid")
        some = _some_rows if self.by_class else _some_pairs
        if config.selection.validate_on == "train":
            self.validation = some(self.train, most)
        elif valid.pair_count and len(valid.y):
            self.validation = some(valid, most)
        elif config.data.holdout and self.by_class:
            self._hold_out_classes(config.data.holdout, most)
        elif config.data.holdout and self.train.pair_count >= 4:
            self._kept, held = hold_out(self.train.pair_count, config.data.holdout, fewest=2)
            self.validation = self.train.take_pairs(held[_some(len(held), most)])

    def _hold_out_classes(self, fraction: float, most: int) -> None:
        labels_x, labels_y = _labels(self.train)
        classes = np.intersect1d(labels_x, labels_y)
        if len(classes) < FEWEST_CLASSES:
            return
        _, held = hold_out(len(classes), fraction, fewest=2)
        in_x, in_y = (np.isin(labels, classes[held]) for labels in (labels_x, labels_y))
        away = self.train.take(np.flatnonzero(in_x), np.flatnonzero(in_y))
        self.validation = _some_rows(away, most)
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
        """All training rows and what they share: their class, or each pair a class of its own."""
        if self.by_class:
            return self.train.x.rows, self.train.y.rows, *_labels(self.train)
        x, y = self.rows(np.arange(self.count))
        names = [str(number) for number in range(self.count)]
        return x, y, names, names

    def summary(self) -> str:
        """One line that says what is learned from."""
        x, y = (" x ".join(map(str, shape)) for shape in (self.info.shape_x, self.info.shape_y))
        held = self.validation
        if self.by_class:
            kept = "none" if held is None else _sizes(held)
            counts = f"{_sizes(self.train)} to train on, {kept} for validation"
        else:
            counts = f"{self.count} training pairs, {len(held.x) if held else 0} for validation"
        return f"{self.info.name}: {counts}; x {x}, y {y}"


def hold_out(count: int, fraction: float, *, fewest: int, seed: int = 0) -> tuple[Indices, Indices]:
    """Divide 0…N−1 into ascending (training, validation) indices; at least `fewest` validate."""
    held = max(fewest, round(count * fraction))
    order = np.random.default_rng((seed, count)).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _refuse_unusable(train: Split, file: DataFile, *, by_class: bool) -> None:
    rows_x, rows_y = len(train.x), len(train.y)
    if train.pair_count == 0 or not rows_y:
        raise IiaeError(
            f"{file.path} has no training rows", "prepare the set again, or name another file"
        )
    if not by_class and train.pairs is None and rows_x != rows_y:
        raise IiaeError(
            f"{file.path} is not paired: {rows_x} rows of x, {rows_y} of y in train",
            "pair it one by one (iiae prepare pairs SOURCE) or by class (iiae prepare classes …)",
        )


def _labels(split: Split) -> tuple[list[str], list[str]]:
    return split.x.labels or [], split.y.labels or []


def _sizes(split: Split) -> str:
    labels_x, labels_y = _labels(split)
    classes = len({*labels_x} & {*labels_y})
    return f"{classes} classes ({len(split.x)} rows of x, {len(split.y)} of y)"


def _some(count: int, most: int) -> Indices:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _some_pairs(split: Split, most: int) -> Split:
    return split.take_pairs(_some(split.pair_count, most))


def _some_rows(split: Split, most: int) -> Split:
    return split.take(_some(len(split.x), most), _some(len(split.y), most))
