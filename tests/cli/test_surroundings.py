"""Locales, closed streams, limits and folders as people have them, each in a process of its own."""

import io
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import pytest
from PIL import Image

from iiae_cli.common import console

TINY = ("prepare", "digits-cdcb", "--limit", "5", "-o", "d.h5")
ROOT = Path(__file__).parents[2]


def start(folder, *words, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more.pop("env", {})}
    command = [sys.executable, "-m", "iiae_cli", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(command, cwd=folder, env=environment, **streams)


# Both commands in one process, as torch takes seconds to import.
BOTH = """
import sys
from iiae_cli.__main__ import main
for command in sys.argv[1:]:
    sys.argv = ["iiae", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
assert "torchvision" not in sys.modules
"""


def test_any_name_survives_a_locale_of_ascii(tmp_path, run):
    names = [b"plain.png", "é→.png".encode(), b"caf\xe9.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        try:
            Image.new("RGB", (32, 32)).save(tmp_path / "in" / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
    encode = f"encode in --domain x --run {run} -o z.h5"
    retrieve = f"retrieve in --domain x --index z.h5 --run {run} --json"
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env |= {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BOTH, encode, retrieve]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "z.h5") as file:
        assert sorted(file["ids"][()].tolist()) == sorted(b"in/" + name for name in names)
    found = json.loads(done.stdout.splitlines()[-1])
    assert "in/é→.png" in {result["query"] for result in found["results"]}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_holds_any_name_in_any_encoding(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", stream)
    console.prepare_streams()
    console.print_json({"id": "é→\udce9.png"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue()) == {"id": "é→\udce9.png"}


def test_closed_streams_end_no_work(tmp_path):
    done = start(tmp_path, *TINY, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert done.returncode == 0 and (tmp_path / "d.h5").exists()


def test_a_reader_that_has_ended_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = start(tmp_path, *TINY, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "d.h5").exists()


@pytest.mark.parametrize("limit", [1000, 9000, 40_000])
def test_a_limit_on_file_sizes_is_a_users_error(tmp_path, limit):
    limits = limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    bound = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    done = start(tmp_path, *TINY, preexec_fn=bound)
    assert done.returncode == 2, done.stderr
    assert b"File too large" in done.stderr and b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_deleted_working_folder_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = start(gone, *TINY, preexec_fn=gone.rmdir)
    assert done.returncode == 2 and b"the working folder no longer exists" in done.stderr


def test_a_file_of_another_kind_is_not_to_be_replaced(iiae):
    Path("mine.h5").write_text("notes")
    with h5py.File("other.h5", "w") as file:
        file["x"] = [1, 2]
    for name in ("mine.h5", "other.h5"):
        _, hint = iiae("train", "--preset", "digits-cdcb", "--data", name).error()
        assert "--overwrite" not in hint
    error, _ = iiae("prepare", "mnist-cdcb", "mine.h5", "-o", "d.h5").error()
    assert "does not exist" not in error
    error, hint = iiae("train", "--preset", "digits-cdcb", "--data", "no/d.h5").error()
    assert f"no/d.h5 was looked for in {Path.cwd()}" in hint


def test_iiae_threads_limits_every_command(tmp_path):
    env = {"IIAE_THREADS": "1", "OMP_NUM_THREADS": "2"}
    done = start(tmp_path, "doctor", "--json", env=env)
    assert json.loads(done.stdout)["devices"]["cpu"] == "1 threads"


@pytest.mark.parametrize("package", ["numpy", "PIL"])
def test_doctor_works_without_what_the_other_commands_need(tmp_path, package):
    (tmp_path / f"{package}.py").write_text("raise ImportError('broken')")
    done = start(tmp_path, "doctor", "--json", text=True)
    assert done.returncode == 2 and "cannot be imported: broken" in done.stderr
    assert json.loads(done.stdout)["problems"]
