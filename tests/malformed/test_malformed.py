"""Malformed and hostile inputs: an exit code and two lines; no traceback, no hang, no file elsewhere, no code run.

A seeded sample of the cases runs here, `MALFORMED_CASES` of them or `all`, by `MALFORMED_SEED`. To see the table:

    cd tests && python -m malformed.report
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from malformed import ALL_CASES

COUNT = os.environ.get("MALFORMED_CASES", "250")
SEED = os.environ.get("MALFORMED_SEED", "0")
KINDS = list(dict.fromkeys(case.kind for case in ALL_CASES))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What happened to each case, in a process of its own."""
    tests = Path(__file__).parents[1]
    paths = [str(tests.parent), str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
    count = [] if COUNT == "all" else ["--count", COUNT]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "malformed.worker",
            tmp_path_factory.mktemp("malformed"),
            "--seed",
            SEED,
            *count,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_there_are_more_than_500_cases_and_each_has_its_name() -> None:
    assert len(ALL_CASES) > 500
    assert len({(case.kind, case.name) for case in ALL_CASES}) == len(ALL_CASES)


def test_a_sample_of_them_ran(records: list[dict[str, Any]]) -> None:
    assert len(records) == (len(ALL_CASES) if COUNT == "all" else int(COUNT))
    codes = [record["code"] for record in records]
    assert (
        codes.count(2) > len(codes) / 2
    )  # most are refused; a program that took everything would fail here


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_of_a_kind_is_answered(records: list[dict[str, Any]], kind: str) -> None:
    wrong = [
        f"{record['name']}: {record['problem']}\n  {record['arguments']}\n  {record['stderr']}"
        for record in records
        if record["kind"] == kind and record["problem"] is not None
    ]
    assert not wrong, "\n".join(wrong)
