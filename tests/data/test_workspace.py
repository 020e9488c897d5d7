"""The folder of unfinished work: who may take it up, and when it goes."""

import subprocess
import sys
from pathlib import Path

import pytest

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.data.workspace import discard, partial_of, workspace


@pytest.fixture
def output(tmp_path):
    return tmp_path / "z.h5"


def interrupted(output, settings, content="done", **more):
    with (
        pytest.raises(Interrupted),
        workspace(output, settings, **{"resume": False, **more}) as folder,
    ):
        (folder / "work").write_text(content)
        raise Interrupted(75, "")


def test_the_folder_stands_beside_the_output_and_goes_when_all_is_well(output):
    with workspace(output, {"a": 1}, resume=False) as folder:
        assert folder == partial_of(output) == output.with_name("z.h5.partial") and folder.is_dir()
        (folder / "work").write_text("done")
    assert list(output.parent.iterdir()) == []


def test_interrupted_work_is_taken_up_under_the_same_settings(output):
    interrupted(output, {"a": [1, None]})
    with workspace(output, {"a": [1, None]}, resume=True) as folder:
        assert (folder / "work").read_text() == "done"


def test_work_of_other_settings_is_dropped_and_said_why(output, capsys):
    interrupted(output, {"model": "m1", "dtype": "f4"})
    with workspace(output, {"model": "m2", "dtype": "f4"}, resume=True) as folder:
        assert not (folder / "work").exists()
    assert "begun with another model: starting afresh" in capsys.readouterr().err
    interrupted(output, {"model": "m1"}, overwrite=True)
    with workspace(output, {"model": "m1"}, resume=False, overwrite=True) as folder:
        assert not (folder / "work").exists()


def test_work_is_not_lost_by_forgetting_resume(output):
    interrupted(output, {"a": 1})
    with (
        pytest.raises(IiaeError, match="holds interrupted work") as caught,
        workspace(output, {"a": 1}, resume=False),
    ):
        raise AssertionError("the block must not run")
    assert "--resume" in caught.value.hint and "--overwrite" in caught.value.hint
    assert (partial_of(output) / "work").exists()


def test_nothing_done_is_nothing_kept(output):
    for error in (Interrupted(75, ""), KeyboardInterrupt(), RuntimeError()):
        with pytest.raises(type(error)), workspace(output, {}, resume=False) as folder:
            (folder / "empty").touch()
            raise error
        assert list(output.parent.iterdir()) == []


def test_a_users_error_clears_up_and_a_full_disk_does_not(output):
    with pytest.raises(IiaeError), workspace(output, {}, resume=False) as folder:
        (folder / "work").write_text("done")
        raise IiaeError("no readable picture", "look")
    assert not partial_of(output).exists()
    with pytest.raises(IiaeError), workspace(output, {}, resume=False) as folder:
        (folder / "work").write_text("done")
        raise IiaeError("no space left", "free some") from OSError()
    with workspace(output, {}, resume=True) as folder:
        assert (folder / "work").exists()


def test_half_written_files_are_swept(output):
    interrupted(output, {})
    (partial_of(output) / ".z.h5.abc.tmp").write_text("torn")
    with workspace(output, {}, resume=True) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "manifest.json", "work"]


def test_a_folder_of_someone_else_is_not_touched(output):
    folder = partial_of(output)
    for content in (None, "{}", '{"schema": "other", "settings": {}}', "[1]"):
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("precious")
        if content is not None:
            (folder / "manifest.json").write_text(content)
        for resume in (False, True):
            with (
                pytest.raises(IiaeError, match="is in the way"),
                workspace(output, {}, resume=resume, overwrite=True),
            ):
                raise AssertionError("the block must not run")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "mine.txt"]


def test_a_folder_that_a_kill_left_before_its_manifest_is_taken(output):
    partial_of(output).mkdir()
    (partial_of(output) / "lock").touch()
    (partial_of(output) / ".manifest.json.abc.tmp").touch()
    with workspace(output, {}, resume=False) as folder:
        assert folder.is_dir()


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(output):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from iiae_cli.data.workspace import workspace\n"
        "with workspace(Path(sys.argv[1]), {}, resume=False) as folder:\n"
        "    (folder / 'work').write_text('done'); print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        for more in ({"resume": True}, {"resume": False, "overwrite": True}):
            with (
                pytest.raises(IiaeError, match="in use by another process"),
                workspace(output, {}, **more),
            ):
                raise AssertionError("the block must not run")
        other.kill()
    with workspace(output, {}, resume=True) as folder:
        assert (folder / "work").read_text() == "done"


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(IiaeError, match="cannot write"),
        workspace(tmp_path / "file" / "z.h5", {}, resume=False),
    ):
        raise AssertionError("the block must not run")


def test_a_kill_while_the_folder_is_removed_leaves_one_that_is_known(output, monkeypatch):
    discard(output)  # nothing there
    for survivors in range(4):
        interrupted(output, {})
        left = []
        unlink = Path.unlink

        def dies(path, missing_ok=False, left=left, survivors=survivors, unlink=unlink):
            if len(left) == survivors:
                raise KeyboardInterrupt
            left.append(path)
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dies)
            if survivors < 3:
                with pytest.raises(KeyboardInterrupt):
                    discard(output)
        discard(output)
        assert list(output.parent.iterdir()) == []


def test_a_folder_of_someone_else_is_not_discarded(output):
    partial_of(output).mkdir()
    (partial_of(output) / "mine.txt").write_text("precious")
    with pytest.raises(IiaeError, match="is in the way"):
        discard(output)
    assert (partial_of(output) / "mine.txt").exists()
