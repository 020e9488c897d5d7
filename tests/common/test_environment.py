"""The cores that a process may use."""

import os

import pytest

from iiae_cli.common.environment import cores


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "max 100000", "job/cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "300000 100000", "job/step/cpu.max": "400000 100000"}, 3),
        ({"cpu.max": "no number"}, 8),
    ],
)
def test_cores_follow_affinity_and_the_quotas_of_cgroups(tmp_path, monkeypatch, quotas, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in quotas.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = tmp_path / "own"
    own.write_text("1:cpu:/job\n0::/job/step\n")
    assert cores(tmp_path, own) == expected
    assert cores(tmp_path / "none", tmp_path / "none") == 8
