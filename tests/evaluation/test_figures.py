"""`--fail-under` and `--fail-over`: floors, ceilings for errors, everything wrong at once."""

import math

import pytest
from helpers import refusal

from iiae_cli.evaluation.figures import dotted_figures, failed_gates, parse_gates

FIGURES = {
    "retrieval": {"shared": {"x_to_y": {"recall@1": 0.9, "median_rank": 3.0, "n": 300}}},
    "translation": {"x_to_y": {"l1": 0.04, "ssim": 0.8, "lpips": 0.21, "lpips_vgg": None}},
    "disentanglement": {"exclusive_kl": {"x": 2.5}, "r2": math.nan},
    "note": "text",
    "flag": True,
}
RECALL = "retrieval.shared.x_to_y.recall@1"
RANK = "retrieval.shared.x_to_y.median_rank"


@pytest.mark.parametrize(
    "gate, line",
    [
        (f"{RECALL}=0.9", []),
        (f"{RECALL}=0.91", [f"{RECALL} is 0.9, below 0.91"]),
        (f"{RANK}=3", []),
        (f"{RANK}=2.5", [f"{RANK} is 3, above 2.5"]),
        ("translation.x_to_y.lpips_vgg=9", ["translation.x_to_y.lpips_vgg could not be measured"]),
        ("disentanglement.exclusive_kl.x=3", ["disentanglement.exclusive_kl.x is 2.5, below 3"]),
        ("disentanglement.r2=-1", ["disentanglement.r2 could not be measured"]),
    ],
)
def test_a_gate_is_a_floor_or_for_errors_a_ceiling(gate, line):
    assert failed_gates(parse_gates([gate]), FIGURES) == line


def test_errors_are_known_by_the_last_part_of_the_key():
    errors = ("l1", "l1_best", "lpips_vgg_best", "median_rank", "leakage_mean", "error_real")
    assert all(gate.is_ceiling for gate in parse_gates([f"a.b.{name}=1" for name in errors]))
    floors = ("l1.recall@1", "l10", "unl1", "recall@1", "ssim_best", "exclusive_kl.x")
    assert not any(gate.is_ceiling for gate in parse_gates([f"a.{name}=1" for name in floors]))


def test_a_ceiling_holds_whatever_the_key_names_and_all_failures_are_reported():
    gates = parse_gates([f"{RECALL}=0.5", f"{RANK}=2"], [f"{RECALL}=0.9", f"{RECALL}=0.8"])
    assert failed_gates(gates, FIGURES) == [f"{RANK} is 3, above 2", f"{RECALL} is 0.9, above 0.8"]


@pytest.mark.parametrize("text", ["recall", "=0.9", "a.b=", "a.b=high", "a=nan", "a=inf", ""])
def test_what_is_not_key_value_is_refused(text):
    error = refusal(parse_gates, [f"{RECALL}=0.5", text])
    assert error.message == f"--fail-under {text} is not KEY=VALUE"
    assert error.hint.startswith("write --fail-under retrieval.")
    assert refusal(parse_gates, [], ["a=1", text]).message.startswith("--fail-over")


@pytest.mark.parametrize(
    "key, near",
    [
        ("recall@1", [RECALL]),
        ("retrieval.shared.x_to_y.recal@1", [RECALL]),
        ("translation.x_to_y.L1", ["translation.x_to_y.l1"]),
        *[(key, list(dotted_figures(FIGURES))) for key in ("zebra", "note", "flag")],
    ],
)
def test_an_unknown_key_gets_near_matches_or_all(key, near):
    error = refusal(failed_gates, parse_gates([f"{key}=1"]), FIGURES)
    assert error.message == f"unknown figure '{key}'"
    assert set(near) <= set(error.hint.removeprefix("figures: ").split(", "))
