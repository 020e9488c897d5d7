"""The first sentence of the report, and the shade of a leak."""

import pytest

from iiae_cli.report.verdict import comparison, leak, verdict


def retrieval(ours, baseline):
    kinds = {"shared": ours, "baseline": baseline}
    ways = ("x_to_y", "y_to_x")
    return {
        "retrieval": {
            kind: {way: {"recall@1": value} for way, value in zip(ways, values, strict=True)}
            for kind, values in kinds.items()
        }
    }


@pytest.mark.parametrize(
    "ours, baseline, tone, words",
    [
        ([0.5, 0.5], [0.25, 0.25], "right", "Ahead of the training-free baseline"),
        ([0.5, 0.5], [0.25, 0.75], "near", "in one direction only"),
        ([0.5, 0.5], [0.5, 0.5], "near", "Level with"),
        ([0.5, 0.5], [0.75, 0.75], "wrong", "Behind"),
        ([1.0, 1.0], [1.0, 1.0], "near", "needs no training"),
    ],
)
def test_the_baseline_decides(ours, baseline, tone, words):
    judged = verdict(retrieval(ours, baseline), [])
    assert judged.tone == tone and words in judged.headline
    assert f"{ours[0]:.3f} / {ours[1]:.3f}" in judged.text
    assert f"the baseline's {baseline[0]:.3f} / {baseline[1]:.3f}" in judged.text


def test_a_failed_gate_comes_first():
    judged = verdict(retrieval([0.5, 0.5], [0.25, 0.25]), ["recall is 0.5, below 0.9"])
    assert judged.tone == "wrong" and "below 0.9" in judged.headline


def test_a_large_leak_and_a_dying_latent_spoil_it():
    factor = {"belongs": False, "mean": {"above_control": 0.8}}
    latents = {"shared_x": {"kl": 20.0}, "exclusive_x": {"kl": 0.5}}
    measured = {"probes": {"shared_x": {"colour": factor}}, "latents": latents}
    figures = {**retrieval([0.5, 0.5], [0.25, 0.25]), "disentanglement": measured}
    judged = verdict(figures, [])
    assert judged.tone == "near"
    assert "0.80 of 1 (colour read from shared x)" in judged.text
    assert "exclusive x says next to nothing" in judged.text


def test_classes_are_compared_with_centred_features():
    ways = {way: {"map@all": 0.4} for way in ("x_to_y", "y_to_x")}
    centred = {way: {"map@all": 0.33} for way in ways}
    table = comparison({"zero_shot": {**ways, "baseline_centred": centred}})
    assert table.rows[:2] == [
        ("x → y", "shared latents", 0.4),
        ("x → y", "training-free baseline", 0.33),
    ]


def test_a_leak_counts_from_what_shuffled_values_read():
    assert [leak(value) for value in (0.1, 0.2, 0.5)] == ["", "some", "high"]
    assert [leak(value, 0.5, 0.1) for value in (0.5, 0.65, 0.75)] == ["", "some", "high"]
    assert leak("") == ""
