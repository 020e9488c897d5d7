"""Files that are whole or not there."""

import errno
import os
import resource
import stat

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import (
    append_line,
    fingerprint_of_file,
    reading,
    refuse_existing,
    remove_temporaries,
    write_errors,
    writing,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.bin"


def listing(path):
    return sorted(one.name for one in path.parent.iterdir())


def test_a_file_appears_whole_when_the_block_ends(path):
    with writing(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.name.startswith(".")
    assert path.read_bytes() == b"new"
    assert listing(path) == ["out.bin"]


def test_what_stood_there_stays_until_the_end_and_is_then_replaced(path):
    path.write_bytes(b"old")
    with writing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert listing(path) == ["out.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_on_failure_the_old_content_survives_and_the_temporary_goes(path, error):
    path.write_bytes(b"old")
    with pytest.raises(error), writing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert listing(path) == ["out.bin"]


def test_on_failure_nothing_appears_where_nothing_was(path):
    with pytest.raises(ValueError), writing(path):
        raise ValueError
    assert listing(path) == []


def test_the_temporary_file_may_lie_in_a_folder_of_its_own(path):
    folder = path.parent / "work"
    folder.mkdir()
    with writing(path, folder=folder) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == folder
    assert path.read_bytes() == b"new" and not list(folder.iterdir())


def test_a_fingerprint_follows_size_and_content(path):
    draw = np.random.default_rng(0)
    seen = set()
    for size in (0, 1, 1000, 3 << 20):
        content = draw.integers(0, 256, size, np.uint8)
        path.write_bytes(content)
        first = fingerprint_of_file(path)
        os.utime(path, ns=(1, 1))
        assert fingerprint_of_file(path) == first and len(first) == 16
        seen.add(first)
        for place in {0, size - 1} & set(range(size)):
            content[place] ^= 1
            path.write_bytes(content)
            seen.add(fingerprint_of_file(path))
    assert len(seen) == 1 + 2 + 3 + 3


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "out.bin"
    with writing(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_the_file_gets_the_permissions_of_the_umask(path):
    previous = os.umask(0o027)
    try:
        with writing(path) as temporary:
            temporary.write_bytes(b"new")
        after = os.umask(0o027)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert after == 0o027  # the umask itself is left as it was


def test_content_reaches_the_disk_before_the_name_unless_that_is_not_worth_the_wait(
    path, monkeypatch
):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.exists()))
    with writing(path, sync=False) as temporary:
        temporary.write_bytes(b"new")
    assert synced == []
    path.unlink()
    with writing(path) as temporary:
        temporary.write_bytes(b"new")
    assert synced == [False, True]  # the file before its name, the name after it


def test_a_line_is_added_whole_or_not_at_all(path):
    append_line(path, "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))  # as a disk that is nearly full
    try:
        with pytest.raises(IiaeError, match="no space left"):
            append_line(path, "three")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_what_killed_processes_left_is_removed_and_nothing_else(path):
    for name in (".out.bin.x1y2.tmp", "out.bin", ".hidden", "notes.tmp"):
        (path.parent / name).write_bytes(b"")
    remove_temporaries(path.parent)
    assert listing(path) == [".hidden", "notes.tmp", "out.bin"]


def refusal(path, error):
    with pytest.raises(IiaeError) as caught, writing(path):
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_users_error(path, code):
    path.write_bytes(b"old")
    message = refusal(path, OSError(code, os.strerror(code)))
    assert f"no space left while writing {path}" in message and "MiB free" in message
    assert path.read_bytes() == b"old" and listing(path) == ["out.bin"]


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_full_disk_as_h5py_reports_it_is_a_users_error(path, kind):
    error = kind(
        "Can't synchronously write data (file write failed: time = Sat Nov 22, filename = '/x', file descriptor = 3, "
        "errno = 28, error message = 'No space left on device', buf = 0x1)"
    )
    assert getattr(error, "errno", None) is None
    assert f"no space left while writing {path}" in refusal(path, error)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_missing_permission_is_a_users_error(path, code):
    assert refusal(path, OSError(code, os.strerror(code))) == f"no permission to write {path}"


@pytest.mark.parametrize("code", [errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_an_impossible_path_is_a_users_error(path, code):
    assert (
        refusal(path, OSError(code, os.strerror(code)))
        == f"cannot write {path}: {os.strerror(code)}"
    )


def test_a_folder_in_the_way_is_a_users_error(path):
    path.mkdir()
    with pytest.raises(IiaeError, match="cannot write"), writing(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.is_dir() and listing(path) == ["out.bin"]


def test_a_file_among_the_folders_is_a_users_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "out.bin", tmp_path / "file" / "deep" / "out.bin"):
        with pytest.raises(IiaeError, match="cannot write"), writing(path):
            raise AssertionError("the block must not run")


def test_a_name_that_is_too_long_is_a_users_error(tmp_path):
    with pytest.raises(IiaeError, match="cannot write"), writing(tmp_path / ("n" * 300)):
        raise AssertionError("the block must not run")


def test_any_other_error_keeps_its_kind(path):
    for error in (OSError(errno.EIO, "broken disk"), OSError("unknown"), RuntimeError("bug")):
        with pytest.raises(type(error)) as caught, write_errors(path):
            raise error
        assert caught.value is error


def test_write_errors_serves_places_that_do_not_exist_yet(tmp_path):
    with pytest.raises(IiaeError, match="no space left"), write_errors(tmp_path / "a" / "b" / "c"):
        raise OSError(errno.ENOSPC, "full")


def test_an_existing_path_is_refused_unless_it_may_be_replaced(path):
    refuse_existing(path, overwrite=False)
    path.write_bytes(b"old")
    refuse_existing(path, overwrite=True)
    with pytest.raises(IiaeError) as caught:
        refuse_existing(path, overwrite=False)
    assert caught.value.message == f"{path} exists already" and "--overwrite" in caught.value.hint
    with pytest.raises(IiaeError):
        refuse_existing(path.parent, overwrite=False)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused_before_anybody_waits_for_it(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    refused = pytest.raises(IiaeError, match=r"out.bin (does not exist|is not a file)")
    with refused, reading(path, "make it"):
        path.read_bytes()


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError(3), MemoryError(), OSError(5, "no")])
def test_whatever_a_reader_raises_is_a_damaged_file(path, error):
    path.touch()
    refused = pytest.raises(IiaeError, match=r"out.bin is damaged: .")
    with refused as caught, reading(path, "make it again"):
        raise error
    assert caught.value.hint == "make it again"


def test_a_readers_own_refusal_passes(path):
    path.touch()
    with pytest.raises(IiaeError, match="of schema 3"), reading(path, "make it"):
        raise IiaeError("it is of schema 3", "use another version")
