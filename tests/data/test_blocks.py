"""Blocks of a job: kept through kills, owned by one process, divided and joined."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal
from hypothesis import given
from hypothesis import strategies as st

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.data import blocks as stores
from iiae_cli.data.blocks import Part, block_store, in_order, part_of, partial_of

JOB = {"seed": 1}


def block(number):
    texts = np.array([f"é {number}", "b\udcff"][: number % 3], np.str_)
    return {"rows": np.arange(number * 6).reshape(-1, 2, 3), "reasons": texts}


def assert_block(arrays, number):
    assert set(arrays) == {"rows", "reasons"}
    for name, wanted in block(number).items():
        np.testing.assert_array_equal(arrays[name], wanted)


def interrupted(output, numbers, job=JOB):
    with pytest.raises(Interrupted), block_store(output, job) as store:
        for number in numbers:
            store.append(number, block(number))
        raise Interrupted(75, "")


def write_parts(folder, count, total, job=JOB):
    paths = []
    for index in range(count):
        part, path = Part(index, count), folder / f"p-{index}-of-{count}.h5"
        with block_store(path, job) as store:
            for number in part.of(total):
                store.append(number, block(number))
            stores.write_part(path, store, part, total, {"index": index})
        paths.append(path)
    return paths


def test_a_resumed_job_makes_what_is_missing(tmp_path):
    output = tmp_path / "z.h5"
    interrupted(output, range(3))
    with block_store(output, JOB, resume=True) as store:
        assert store.missing(range(5)) == [3, 4]
        for number in (4, 3):
            store.append(number, block(number))
        for number in range(5):
            assert_block(store.read(number), number)
    assert not partial_of(output).exists()


@pytest.mark.parametrize("left", [0, 300, -9])
def test_a_block_that_a_dying_machine_damaged_is_made_again(tmp_path, left):
    output = tmp_path / "z.h5"
    interrupted(output, range(3))
    path = partial_of(output) / "1.npz"
    path.write_bytes(path.read_bytes()[:left])
    with block_store(output, JOB, resume=True) as store:
        assert store.missing(range(3)) == [1]


def test_a_block_that_is_damaged_meanwhile_is_named_and_the_others_stay(tmp_path):
    output = tmp_path / "z.h5"
    interrupted(output, range(3))
    path = partial_of(output) / "1.npz"
    with pytest.raises(IiaeError) as caught, block_store(output, JOB, resume=True) as store:
        path.write_bytes(path.read_bytes()[:-9])
        store.read(1)
    assert f"{path} is damaged" in caught.value.message and "--resume" in caught.value.hint
    with block_store(output, JOB, resume=True) as store:
        assert store.missing(range(3)) == [1]


def test_work_that_is_there_asks_for_resume_or_overwrite(tmp_path, capsys):
    output = tmp_path / "z.h5"
    interrupted(output, range(2))
    with pytest.raises(IiaeError, match="holds interrupted work"), block_store(output, JOB):
        pass
    with pytest.raises(Interrupted), block_store(output, {"seed": 2}, resume=True) as store:
        assert store.missing([0]) == [0]
        store.append(0, block(0))
        raise Interrupted(75, "")
    assert "was begun with another seed: starting afresh" in capsys.readouterr().err
    job = partial_of(output) / "job.json"
    job.write_text(job.read_text().replace("iiae.partial/3", "iiae.partial/2"))
    with block_store(output, {"seed": 2}, resume=True) as store:
        assert store.missing([0]) == [0]
    assert "was begun with another schema: starting afresh" in capsys.readouterr().err


def test_what_is_not_the_stores_is_left_alone(tmp_path):
    output = tmp_path / "z.h5"
    partial_of(output).mkdir()
    (partial_of(output) / "thesis.txt").write_text("mine")
    with pytest.raises(IiaeError, match="is in the way"), block_store(output, JOB, overwrite=True):
        pass
    assert (partial_of(output) / "thesis.txt").exists()
    for folder in (tmp_path, Path()):
        with pytest.raises(IiaeError, match="is a folder"), block_store(folder, JOB):
            pass


@pytest.mark.parametrize("instead", [None, "folder", "file"])
def test_a_folder_that_somebody_takes_away_is_a_users_error(tmp_path, instead):
    output = tmp_path / "z.h5"
    with pytest.raises(IiaeError), block_store(output, JOB) as store:
        store.append(0, block(0))
        shutil.rmtree(store.folder)
        if instead:
            store.folder.mkdir() if instead == "folder" else store.folder.touch()
        store.append(1, block(1))
        store.read(0)


def test_a_users_error_removes_the_folder_and_a_full_disk_does_not(tmp_path):
    output = tmp_path / "z.h5"
    for cause in (None, OSError()):
        with pytest.raises(IiaeError), block_store(output, JOB) as store:
            store.append(0, block(0))
            raise IiaeError("full", "free some space") from cause
        assert partial_of(output).exists() == (cause is not None)
    stores.discard(output)
    assert not partial_of(output).exists()


def test_one_process_at_a_time(tmp_path):
    with (
        block_store(tmp_path / "z.h5", JOB),
        pytest.raises(IiaeError, match="another process works in"),
        block_store(tmp_path / "z.h5", JOB, overwrite=True),
    ):
        pass


@given(st.integers(1, 40), st.integers(0, 200))
def test_parts_cover_all_blocks_once_and_evenly(count, total):
    runs = [Part(index, count).of(total) for index in range(count)]
    assert [number for run in runs for number in run] == list(range(total))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@pytest.mark.parametrize("total", [0, 2, 7])
def test_parts_in_any_order_hold_every_block_in_order(tmp_path, total):
    paths = write_parts(tmp_path, 3, total)
    parts = in_order([part_of(path) for path in paths[::-1]], "iiae encode …")
    assert [part.about["index"] for part in parts] == [0, 1, 2] and parts[0].job == JOB
    blocks = [block for part in parts for block in part.blocks()]
    assert len(blocks) == total
    for number, arrays in enumerate(blocks):
        assert_block(arrays, number)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    own = write_parts(folders[0], 3, 7)
    fewer, foreign = write_parts(folders[1], 2, 7), write_parts(folders[2], 3, 7, {"seed": 9})

    def why(*paths):
        error = refusal(lambda: in_order([part_of(path) for path in paths], "iiae encode …"))
        return error.message, error.hint

    message, hint = why(own[0])
    assert message == "missing shards: 1/3, 2/3"
    assert hint == "make the rest: iiae encode … --shard 1/3 --resume"
    assert "shard 1/3 is given twice" in why(own[1], own[0], own[1])[0]
    assert "another number of shards than" in why(own[0], fewer[1])[0]
    assert "was made with another seed than" in why(*own[:2], foreign[2])[0]
    own[1].write_bytes(own[1].read_bytes()[:-2000])
    assert "is damaged" in why(*own)[0]
    own[1].write_text("no")
    assert "is not an HDF5 file" in why(*own)[0] and "--overwrite" not in why(*own)[1]
