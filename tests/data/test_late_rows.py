"""Rows in files behave as the array that they stand in for, and are read a few at a time."""

import h5py
import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data import late_rows as module
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.data.late_rows import LateRows, Piece, as_array, unfold

LENGTHS = (4, 0, 1, 6, 2)


def stored(folder, shape=(2, 3, 3), dtype=np.uint8):
    """All items (13, *shape), and the pieces of files that hold them."""
    items = np.random.default_rng(0).integers(0, 256, (sum(LENGTHS), *shape)).astype(dtype)
    pieces, done = [], 0
    for number, length in enumerate(LENGTHS):
        path = folder / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["train/rows0"] = items[done : done + length]
        pieces.append(Piece(path, "train/rows0", length))
        done += length
    return items, pieces


def read(rows):
    blocks = list(rows.blocks())
    return np.concatenate(blocks) if blocks else np.empty(rows.shape, rows.dtype)


def late(pieces, items, **more):
    return LateRows(pieces, items.shape[1:], items.dtype, remedy="make it again", **more)


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch):
    monkeypatch.setattr(module, "COPY_BYTES", 60)  # three rows of 18 bytes
    monkeypatch.setattr(module, "_OPEN", 2)


@pytest.mark.parametrize("seed", range(5))
def test_any_choice_of_rows_is_the_arrays(tmp_path, seed):
    items, pieces = stored(tmp_path)
    rows = late(pieces, items)
    assert rows.shape == items.shape and len(rows) == 13
    np.testing.assert_array_equal(read(rows), items)
    draw = np.random.default_rng(seed)
    chosen, again = draw.integers(0, 13, 9), np.sort(draw.integers(0, 9, 5))
    for choose in (slice(3, 11), slice(0), chosen, np.flatnonzero(draw.random(13) < 0.7)):
        assert rows[choose].shape == items[choose].shape
        np.testing.assert_array_equal(read(rows[choose]), items[choose])
    np.testing.assert_array_equal(read(rows[chosen][again][1:]), items[chosen][again][1:])


def test_items_of_several_rows_are_unfolded(tmp_path):
    items, pieces = stored(tmp_path)
    rows, whole = unfold(as_array(late(pieces, items)[:11])), unfold(items[:11])
    assert rows.shape == whole.shape == (22, 3, 3)
    np.testing.assert_array_equal(read(rows), whole)
    np.testing.assert_array_equal(read(rows[3:17]), whole[3:17])
    odd = np.array([21, 0, 1, 2, 9, 9, 4])
    np.testing.assert_array_equal(read(rows[odd]), whole[odd])


def test_a_data_file_is_written_block_by_block(tmp_path):
    items, pieces = stored(tmp_path, (6,), np.float32)
    ticks = []
    rows = as_array(late(pieces, items, tick=lambda: ticks.append(1)))
    names = [str(number) for number in range(13)]
    for path, some in ((tmp_path / "late.h5", rows), (tmp_path / "array.h5", items)):
        write_data_file(path, "mine", {"train": Split(Side(some, names), Side(some[:], names))}, {})
    assert len(ticks) == 2 * 7  # two rows of 24 bytes at once
    assert (tmp_path / "late.h5").read_bytes() == (tmp_path / "array.h5").read_bytes()
    np.testing.assert_array_equal(DataFile(tmp_path / "late.h5").split("train").y.rows, items)


def test_a_damaged_file_is_named(tmp_path):
    items, pieces = stored(tmp_path, (6,), np.float32)
    with h5py.File(pieces[3].path, "a") as file:
        file["train/rows0"][2, 1] = np.nan
    with pytest.raises(
        IiaeError, match=r"3\.h5 is damaged in /train/rows0: it holds values that are not finite"
    ):
        read(late(pieces, items))
    pieces[3].path.write_bytes(b"no HDF5")
    with pytest.raises(IiaeError, match=r"3\.h5 is not a readable HDF5 file") as caught:
        read(late(pieces, items))
    assert caught.value.hint == "make it again"
