"""Files that exist are whole, and what cannot be read or written is a user's error."""

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import refusal

from iiae_cli.common.errors import DamagedFile
from iiae_cli.common.files import (
    check_kind,
    locked,
    missing,
    reading,
    refusal_of_system,
    remove_temporaries,
    sha256_of,
    writing,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.bin"


def listing(path):
    return sorted(item.name for item in path.parent.iterdir())


def raising(context, error):
    with context:
        raise error


# ---- writing


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_appears_whole_when_the_block_ends(path, old):
    if old is not None:
        path.write_bytes(old)
    with writing(path) as temporary:
        temporary.write_bytes(b"new")
        assert (path.read_bytes() if path.exists() else None) == old
    assert path.read_bytes() == b"new" and listing(path) == ["out.bin"]


def test_folders_are_made_and_the_umask_holds(tmp_path):
    path, folder = tmp_path / "a" / "b" / "out.bin", tmp_path / "work"
    folder.mkdir()
    previous = os.umask(0o027)
    try:
        with writing(path, folder=folder) as temporary:
            assert temporary.parent == folder
    finally:
        os.umask(previous)
    assert path.exists() and not list(folder.iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(("sync", "expected"), [(False, []), (True, [False, True])])
def test_content_is_synced_before_the_name_and_the_folder_after_it(
    path, monkeypatch, sync, expected
):
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.exists()))
    with writing(path, sync=sync):
        pass
    assert synced == expected


def test_what_killed_processes_left_is_removed_and_nothing_else(path):
    for name in (".out.bin.x1y2.tmp", "out.bin", ".hidden", "notes.tmp"):
        (path.parent / name).touch()
    remove_temporaries(path.parent)
    assert listing(path) == [".hidden", "notes.tmp", "out.bin"]


# ---- what the system refuses

H5PY = (
    "Can't synchronously write data (file write failed: time = Sat Nov 22, filename = '/x', "
    "errno = 28, error message = 'No space left on device', buf = 0x1)"
)
REFUSALS = [OSError(number, "no") for number in (errno.EDQUOT, errno.EROFS, errno.EIO)]


@pytest.mark.parametrize("error", [*REFUSALS, OSError(H5PY), RuntimeError(H5PY)], ids=str)
def test_a_refusal_to_write_is_a_users_error_and_the_old_content_survives(path, error):
    path.write_bytes(b"old")
    refused = refusal(raising, writing(path), error)
    assert refused.message.startswith(f"cannot write {path}: ") and refused.__cause__ is error
    assert ("space" in refused.hint) == (error is REFUSALS[0] or "28" in str(error))
    assert path.read_bytes() == b"old" and listing(path) == ["out.bin"]


@pytest.mark.parametrize("error", [OSError("bug"), RuntimeError("bug"), KeyboardInterrupt()])
def test_any_other_error_keeps_its_kind_and_the_old_content(path, error):
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        raising(writing(path), error)
    assert path.read_bytes() == b"old" and listing(path) == ["out.bin"]


@pytest.mark.parametrize("name", ["folder", "pipe", "file/out.bin", "n" * 300])
def test_an_impossible_path_is_a_users_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()

    def write():
        with writing(tmp_path / name):
            pass

    assert "cannot write" in refusal(write).message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO])
def test_the_systems_refusals_are_users_errors_wherever_they_come_from(number):
    error = refusal_of_system(OSError(number, "no", "somewhere"))
    assert error is not None and "somewhere" in error.message
    assert refusal_of_system(FileNotFoundError(errno.ENOENT, "a bug", "somewhere")) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_without_locks_is_worked_in_with_one_warning(
    tmp_path, monkeypatch, capsys, number
):
    def no_locks(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, "wait"):
        pass
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "cannot be locked" in warnings[0]


# ---- reading


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_before_anybody_waits_for_it(path, make):
    make(path)
    message = refusal(raising, reading(path, "make it"), ValueError()).message
    assert message.endswith(("does not exist", "is not a file"))


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError(3), OSError(errno.EINVAL, "no")])
def test_whatever_a_reader_raises_is_a_damaged_file(path, error):
    path.touch()
    refused = refusal(raising, reading(path, "make it again"), error)
    assert refused.message.startswith(f"{path} is damaged: ") and refused.hint == "make it again"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "no"), "cannot be read: "),
        (OSError("unable to lock file, errno = 37, error message = 'x'"), "cannot be read: "),
        (OSError("file is already open for write (may use <h5clear file>)"), "already open"),
        (MemoryError(), "cannot be read: Cannot allocate memory"),
    ],
)
def test_what_the_system_refuses_is_not_called_damaged(path, error, said):
    path.touch()
    refused = refusal(raising, reading(path, "replace it"), error)
    assert said in refused.message and "in use" in refused.hint
    assert not isinstance(refused, DamagedFile)


def test_a_file_that_may_not_be_read_is_not_called_damaged(path, monkeypatch):
    path.touch()
    refuse = OSError(errno.EACCES, "no")
    monkeypatch.setattr(Path, "open", lambda *_, **__: raising(nullcontext(), refuse))
    refused = refusal(raising, reading(path, "replace it"), RuntimeError("No such file"))
    assert "cannot be read: " in refused.message and refused.hint != "replace it"


def test_the_checksum_runs_over_files_in_order(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(b"a" * 2_000_000)
    second.write_bytes(b"bc")
    assert sha256_of(first, second) == hashlib.sha256(b"a" * 2_000_000 + b"bc").hexdigest()


def test_a_file_of_another_schema_is_not_to_be_replaced():
    for given in ("iiae.data/1", "iiae.data/3", "none", "iiae.part/1"):
        error = refusal(check_kind, Path("d.h5"), given, "iiae.data/2")
        assert f"has schema {given}, expected iiae.data/2" in error.message
        assert "--overwrite" not in error.hint
    error = refusal(check_kind, Path("x.safetensors"), "none", "iiae.backbone/2")
    assert "prepare --save-backbone wrote" in error.hint


def test_a_missing_path_says_which_folder_was_searched(tmp_path):
    error = missing(tmp_path / "a" / "b.h5", "make it")
    assert error.hint == f"a/b.h5 was looked for in {tmp_path}; make it"
    (tmp_path / "link").symlink_to("gone")
    assert "links to gone" in missing(tmp_path / "link", "make it").message
