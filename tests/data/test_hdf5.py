"""New HDF5 files and texts in them; a full disk is tried for real in test_crash.py."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.data.hdf5 import new_hdf5, open_hdf5, read_texts, write_texts


def test_a_file_is_whole_and_an_error_inside_passes(tmp_path: Path) -> None:
    with new_hdf5(tmp_path / "whole.h5") as file:
        file["x"] = [1, 2]
    with h5py.File(tmp_path / "whole.h5") as file:
        assert file["x"][()].tolist() == [1, 2]
    with pytest.raises(KeyError, match="mine"), new_hdf5(tmp_path / "broken.h5") as file:
        raise KeyError("mine")
    assert not file


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_any_text_comes_back(texts: list[str]) -> None:
    texts += [os.fsdecode(b"caf\xe9.png"), ""]  # a file name that is no UTF-8
    with TemporaryDirectory() as folder:
        path = Path(folder, "t.h5")
        with h5py.File(path, "w") as file:
            write_texts(file, "texts", texts)
            write_texts(file, "none", [])
        with open_hdf5(path, "") as file:
            assert read_texts(file, "texts") == texts
            assert read_texts(file, "none") == [] and read_texts(file, "missing") is None
