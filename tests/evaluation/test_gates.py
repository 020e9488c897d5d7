"""`--fail-under` as a pure function: floors, ceilings for errors, everything wrong at once."""

import math

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.evaluation.gates import Gate, dotted_figures, failed_gates, parse_gates

FIGURES = {
    "retrieval": {
        "shared": {"x_to_y": {"recall@1": 0.9, "recall@10": 1.0, "median_rank": 3.0, "n": 300}}
    },
    "translation": {
        "x_to_y": {"l1": 0.04, "ssim": 0.8, "lpips": 0.21, "lpips_vgg": None, "l1_best": 0.03}
    },
    "disentanglement": {
        "exclusive_kl": {"x": 2.5},
        "factors": {"x_color": {"shared_mean": {"r2": math.nan}}},
    },
    "note": "text",
    "flag": True,
}
RECALL = "retrieval.shared.x_to_y.recall@1"


def failures(*texts):
    return failed_gates(parse_gates(texts), FIGURES)


@pytest.mark.parametrize(
    "gate, line",
    [
        (f"{RECALL}=0.9", None),
        (f"{RECALL}=0.91", f"{RECALL} is 0.9, below 0.91"),
        ("retrieval.shared.x_to_y.median_rank=3", None),
        (
            "retrieval.shared.x_to_y.median_rank=2.5",
            "retrieval.shared.x_to_y.median_rank is 3, above 2.5",
        ),
        ("translation.x_to_y.l1=0.04", None),
        ("translation.x_to_y.l1=0.03", "translation.x_to_y.l1 is 0.04, above 0.03"),
        ("translation.x_to_y.l1_best=0.02", "translation.x_to_y.l1_best is 0.03, above 0.02"),
        ("translation.x_to_y.lpips=0.3", None),
        ("translation.x_to_y.lpips=0.2", "translation.x_to_y.lpips is 0.21, above 0.2"),
        ("translation.x_to_y.lpips_vgg=9", "translation.x_to_y.lpips_vgg could not be measured"),
        ("translation.x_to_y.ssim=0.8", None),
        ("translation.x_to_y.ssim=0.9", "translation.x_to_y.ssim is 0.8, below 0.9"),
        ("disentanglement.exclusive_kl.x=2", None),
        ("disentanglement.exclusive_kl.x=3", "disentanglement.exclusive_kl.x is 2.5, below 3"),
        (
            "disentanglement.factors.x_color.shared_mean.r2=-1",
            "disentanglement.factors.x_color.shared_mean.r2 could not be measured",
        ),
    ],
)
def test_a_gate_is_a_floor_or_for_errors_a_ceiling(gate, line):
    assert failures(gate) == ([] if line is None else [line])


@pytest.mark.parametrize(
    "name", ["l1", "l1_mean", "l1_best", "lpips", "lpips_vgg_best", "median_rank"]
)
def test_errors_are_known_by_the_last_part_of_the_key(name):
    assert Gate(f"a.b.{name}", 1).lower_is_better
    assert not Gate(f"a.{name}.recall@1", 1).lower_is_better
    assert not Gate(f"a.un{name}", 1).lower_is_better


def test_names_that_only_begin_alike_are_floors():
    assert not any(
        Gate(name, 1).lower_is_better for name in ("l10", "recall@1", "ssim_best", "exclusive_kl.x")
    )


def test_all_failures_are_reported_at_once():
    lines = failures(f"{RECALL}=1", "translation.x_to_y.l1=0.05", "translation.x_to_y.l1=0.01")
    assert [line.split(" is ")[0] for line in lines] == [RECALL, "translation.x_to_y.l1"]
    assert failures() == []


@pytest.mark.parametrize("text", ["recall", "=0.9", "a.b=", "a.b=high", "a=nan", "a=inf", ""])
def test_what_is_not_key_value_is_refused(text):
    with pytest.raises(IiaeError) as caught:
        parse_gates([f"{RECALL}=0.5", text])
    assert caught.value.message == f"--fail-under {text} is not KEY=VALUE"
    assert RECALL in caught.value.hint


def test_every_malformed_gate_is_named():
    with pytest.raises(IiaeError, match="--fail-under one, two=x is not KEY=VALUE"):
        parse_gates(["one", "fine=1", "two=x"])


@pytest.mark.parametrize(
    "key, near",
    [
        ("retrieval.shared.x_to_y.recall", RECALL),
        ("recall@1", RECALL),
        ("retrieval.shared.x_to_y.recal@1", RECALL),
        ("translation.x_to_y.L1", "translation.x_to_y.l1"),
    ],
)
def test_an_unknown_key_gets_near_matches(key, near):
    with pytest.raises(IiaeError) as caught:
        failures(f"{key}=1")
    assert caught.value.message == f"there is no figure '{key}'"
    assert caught.value.hint.startswith("near matches: ") and near in caught.value.hint.split(": ")[
        1
    ].split(", ")


def test_all_unknown_keys_are_named_and_all_figures_where_nothing_is_near():
    with pytest.raises(IiaeError) as caught:
        failures("zebra=1", f"{RECALL}=2", "quagga=1", "zebra=2")
    assert caught.value.message == "there is no figure 'zebra', 'quagga'"
    assert caught.value.hint == "figures: " + ", ".join(dotted_figures(FIGURES))
    with pytest.raises(IiaeError) as caught:
        failed_gates(parse_gates(["a=1"]), {})
    assert caught.value.hint == "figures: none was measured"


@pytest.mark.parametrize("key", ["retrieval.shared", "note", "flag"])
def test_groups_and_texts_are_no_figures(key):
    with pytest.raises(IiaeError, match="there is no figure"):
        failures(f"{key}=1")


def test_a_ceiling_holds_whatever_the_key_names():
    assert failed_gates(parse_gates([], [f"{RECALL}=0.9"]), FIGURES) == []
    assert failed_gates(parse_gates([f"{RECALL}=0.5"], [f"{RECALL}=0.8"]), FIGURES) == [
        f"{RECALL} is 0.9, above 0.8"
    ]
    leakage = {"latents": {"shared_x": {"leakage_mean": 0.4}}}
    key = "latents.shared_x.leakage_mean"
    assert failed_gates(parse_gates([f"{key}=0.5"]), leakage) == []
    assert failed_gates(parse_gates([f"{key}=0.1"]), leakage) == [f"{key} is 0.4, above 0.1"]
    with pytest.raises(IiaeError, match="--fail-over nonsense is not KEY=VALUE") as caught:
        parse_gates([], ["nonsense"])
    assert caught.value.hint.startswith("write --fail-over disentanglement")
