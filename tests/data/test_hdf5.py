"""New HDF5 files; a full disk is tried for real in test_crash.py."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from iiae_cli.data.hdf5 import new_hdf5


def test_a_file_is_whole_and_an_error_inside_passes(tmp_path: Path) -> None:
    with new_hdf5(tmp_path / "whole.h5") as file:
        file["x"] = [1, 2]
    with h5py.File(tmp_path / "whole.h5") as file:
        assert file["x"][()].tolist() == [1, 2]
    with pytest.raises(KeyError, match="mine"), new_hdf5(tmp_path / "broken.h5") as file:
        raise KeyError("mine")
    assert not file
