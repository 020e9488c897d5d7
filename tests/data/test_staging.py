"""Copies on the node's own disk: one for all processes, never a stale or a torn one, gone when nobody reads it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.data.staging import Staging


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "shared" / "a.h5"
    path.parent.mkdir()
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    return folder


def files(disk):
    return sorted(path.name for path in disk.rglob("*") if path.is_file())


def test_a_copy_is_whole_and_goes_with_the_block(source, disk, capsys):
    with Staging(True, folder=disk) as staging:
        copy = staging.copy_of(source)
        assert copy.read_bytes() == source.read_bytes() and copy.parent.parent == disk
        assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert files(disk) == []
    assert f"staging {source}" in capsys.readouterr().err


def test_nothing_is_copied_unless_wanted(source, disk):
    for staging in (
        Staging(False, folder=disk),
        Staging.from_option(None, ""),
        Staging.from_option(False, "1"),
    ):
        with staging:
            assert staging.copy_of(source) is None
    assert Staging.from_option(None, "1").wanted and Staging.from_option(True, "").wanted
    assert not Staging.from_option(None, "0").wanted and Staging.from_option(None, "keep").keep
    with Staging(True, folder=disk) as staging:
        assert staging.copy_of(source.with_name("none.h5")) is None
    assert list(disk.iterdir()) == []


def test_a_kept_copy_is_used_again_and_a_changed_file_is_copied_anew(source, disk, monkeypatch):
    copies = []
    copy = Staging._copy
    monkeypatch.setattr(Staging, "_copy", lambda *arguments: copies.append(1) or copy(*arguments))
    for _ in range(2):
        with Staging(True, keep=True, folder=disk) as staging:
            first = staging.copy_of(source)
    assert len(copies) == 1 and first.exists()
    source.write_bytes(b"other")
    with Staging(True, folder=disk) as staging:
        assert staging.copy_of(source).read_bytes() == b"other"
    assert len(copies) == 2


def test_the_last_of_several_clears_up(source, disk):
    with Staging(True, folder=disk) as outer:
        copy = outer.copy_of(source)
        with Staging(True, folder=disk) as inner:
            assert inner.copy_of(source) == copy
        assert copy.exists()
        assert copy.read_bytes() == source.read_bytes()
    assert files(disk) == []


def test_processes_that_start_together_share_one_copy(source, disk):
    code = (
        "import sys; from pathlib import Path; from iiae_cli.data.staging import Staging\n"
        "source, disk = map(Path, sys.argv[1:])\n"
        "with Staging(True, folder=disk) as staging:\n"
        "    print(staging.copy_of(source).read_bytes() == source.read_bytes(), flush=True)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, source, disk], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [one.communicate(timeout=60)[0] for one in started] == ["True\n"] * 4
    assert files(disk) == []


def test_what_a_killed_copy_left_is_swept_and_never_read(source, disk):
    with Staging(True, keep=True, folder=disk) as staging:
        copy = staging.copy_of(source)
    copy.unlink()
    (copy.parent / f".{copy.name}.abc.tmp").write_bytes(b"torn")
    with Staging(True, folder=disk) as staging:
        assert staging.copy_of(source).read_bytes() == source.read_bytes()
    assert files(disk) == []


def test_a_disk_that_is_too_small_is_left_alone_and_said(source, disk, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 50 << 20))
    with Staging(True, folder=disk) as staging:
        assert staging.copy_of(source) is None
    assert "is not staged" in capsys.readouterr().err


def test_a_folder_of_someone_else_is_refused(source, disk, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (disk / f"iiae-stage-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with (
        Staging(True, folder=disk) as staging,
        pytest.raises(IiaeError, match="not a folder of yours") as caught,
    ):
        staging.copy_of(source)
    assert "TMPDIR" in caught.value.hint


def test_a_data_file_is_read_from_its_copy_and_named_by_its_place(tmp_path, disk):
    path = tmp_path / "a.h5"
    rows = np.arange(4 * 16 * 16 * 3, dtype=np.uint8).reshape(4, 16, 16, 3)
    write_data_file(
        path, "mine", {"train": Split(Side(rows, list("abcd")), Side(rows, list("abcd")))}, {}
    )
    with Staging(True, folder=disk) as staging:
        file = DataFile(path, copy=staging.copy_of(path))
        Path(path).write_bytes(b"gone")
        assert file.path == path
        np.testing.assert_array_equal(file.split("train").x.rows, rows)
        found, ids, labels = file.domain_rows("train", "y")
        np.testing.assert_array_equal(found[1:3], rows[1:3])
        assert ids == list("abcd") and labels is None and len(found) == 4
