"""Disentanglement end to end on latents made by hand, swaps and bounds against direct computation, and the command."""

import h5py
import numpy as np
import pytest
import torch
from helpers import small_image_model
from torch.distributions import Normal, kl_divergence

from iiae_cli.data.batches import to_inputs
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.bounds import bound_figures
from iiae_cli.evaluation.disentanglement import (
    ProbedRows,
    belongs,
    items_of,
    latent_figures,
    own_factors,
    probe_figures,
    warnings_of,
)
from iiae_cli.evaluation.disentanglement_tables import disentanglement_tables
from iiae_cli.evaluation.factors import read_factors
from iiae_cli.evaluation.probes import draw_folds
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.evaluation.swaps import moved, swap_figures
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model.iiae import feature_iiae
from iiae_cli.report.disentanglement_section import disentanglement_section

ROWS = 400


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pictures(seed, rows=9, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (rows, 16, 16, channels)).astype(np.uint8)


def split_of(x, y, **more):
    return Split(*(Side(rows, [f"t/{row}" for row in range(len(rows))]) for rows in (x, y)), **more)


def encode(model, split):
    """Latents by the model's own methods, one batch."""
    model.eval()
    found = []
    with torch.no_grad():
        for domain in ("x", "y"):
            inputs = to_inputs(split.side(domain).rows, None)
            shared = model.encode_shared(domain, inputs)
            arrays = {"shared_mean": shared.mean, "shared_logvar": shared.logvar}
            if model.exclusive_dim:
                exclusive = model.encode_exclusive(domain, inputs)
                arrays |= {"exclusive_mean": exclusive.mean, "exclusive_logvar": exclusive.logvar}
            found.append(Encoded(**{name: one.flatten(1).numpy() for name, one in arrays.items()}))
    return EncodedPairs(*found)


# ---- probes by latent, on latents whose content is known


def known_rows():
    """Shared x holds the class and, faintly, x's colour; exclusive x its colour; y's are as they should be."""
    codes = np.random.default_rng(1).integers(0, 4, ROWS)
    columns = {
        "class": codes,
        "x_color": normal(2, ROWS, 3),
        "y_color": normal(3, ROWS, 3),
        "mood": normal(4, ROWS),
    }
    centres = 4 * normal(5, 4, 6)
    quiet = np.full((ROWS, 6), -2.0, np.float32)  # a deviation of 0.37
    leak = np.zeros((ROWS, 6), np.float32)
    leak[:, :3] = 0.03 * columns["x_color"]
    exact = np.where(
        leak == 0, normal(6, ROWS, 6), leak
    )  # three dimensions of nothing but colour, three of noise
    x = Encoded(
        shared_mean=np.hstack([centres[codes], exact]),
        shared_logvar=np.hstack([quiet, quiet]),
        exclusive_mean=columns["x_color"],
        exclusive_logvar=np.full((ROWS, 3), -6.0, np.float32),
    )
    y = Encoded(
        shared_mean=centres[codes] + normal(7, ROWS, 6),
        shared_logvar=quiet,
        exclusive_mean=columns["y_color"],
        exclusive_logvar=np.full((ROWS, 3), -6.0, np.float32),
    )
    factors = read_factors(columns, None, 0)
    folds = draw_folds(np.arange(ROWS))
    return ProbedRows(EncodedPairs(x, y), {"x": factors, "y": factors}, {"x": folds, "y": folds}, 0)


@pytest.fixture(scope="module")
def known():
    rows = known_rows()
    probes = probe_figures(rows)
    return rows, probes, latent_figures(rows.pairs, probes)


def test_a_leak_of_the_mean_that_samples_hide(known):
    _, probes, latents = known
    leak = probes["shared_x"]["x_color"]
    assert (
        leak["belongs"] is False
        and leak["kind"] == "quantity"
        and leak["n"] == ROWS
        and leak["chance"] == 0
    )
    assert leak["mean"]["linear"] > 0.99
    # In samples 0.03² of signal stands against e^−2 of noise: R² is 0.007.
    assert leak["sample"]["linear"] < 0.05
    assert (
        latents["shared_x"]["leakage_mean"] > 0.99 and latents["shared_x"]["leakage_sample"] < 0.06
    )
    assert latents["shared_y"]["leakage_mean"] < 0.06
    assert (
        latents["exclusive_x"]["leakage_mean"] < 0.15
        and latents["exclusive_y"]["leakage_mean"] < 0.15
    )


def test_what_should_be_there_is(known):
    _, probes, latents = known
    for name in ("shared_x", "shared_y"):
        assert (
            probes[name]["class"]["belongs"] is True and probes[name]["class"]["kind"] == "classes"
        )
        assert latents[name]["informativeness_mean"] > 0.9
        assert latents[name]["informativeness_sample"] > 0.85
    for domain in ("x", "y"):
        # A sample's noise has variance e^−6.
        assert probes[f"exclusive_{domain}"][f"{domain}_color"]["sample"][
            "linear"
        ] == pytest.approx(0.997, abs=0.003)
        assert latents[f"exclusive_{domain}"]["informativeness_mean"] > 0.99
        assert (
            latents[f"exclusive_{domain}"]["dimensions"]
            == latents[f"exclusive_{domain}"]["active"]
            == 3
        )
    assert latents["shared_x"]["active"] == 9  # those of the leak move, but less than active means


def test_controls_are_at_chance(known):
    _, probes, _ = known
    for factors in probes.values():
        for one in factors.values():
            margin = 4 * np.sqrt(0.25 * 0.75 / ROWS) if one["kind"] == "classes" else 0.05
            for way in ("mean", "sample"):
                for probe in ("control", "control_nonlinear"):
                    assert abs(one[way][probe] - one["chance"]) < margin
    assert warnings_of(known[2], known[1]) == []


def test_a_factor_of_nobody_has_no_verdict(known):
    _, probes, latents = known
    assert all(factors["mood"]["belongs"] is None for factors in probes.values())
    loud = {
        name: {**factors, "mood": {**factors["x_color"], "belongs": None}}
        for name, factors in probes.items()
    }
    assert latent_figures(known[0].pairs, loud) == latents


def test_the_short_form_keeps_its_keys(known):
    short = own_factors(known[1])
    assert set(short) == {"x_color", "y_color"}
    assert set(short["x_color"]) == {"shared_mean", "exclusive_mean"}
    assert short["x_color"]["shared_mean"] == {
        "r2": known[1]["shared_x"]["x_color"]["mean"]["linear"]
    }


@pytest.mark.parametrize(
    "owner, expected",
    [
        ("shared", [True, False, False]),
        ("x", [False, True, False]),
        ("y", [False, False, True]),
        (None, [None] * 3),
    ],
)
def test_what_belongs_where(owner, expected):
    assert [
        belongs(owner, *one) for one in (("shared", "x"), ("exclusive", "x"), ("exclusive", "y"))
    ] == expected


def test_collapsed_latents_and_loud_controls_are_warned_of():
    latents = {"shared_x": {"active": 0, "kl": 9.0}, "exclusive_y": {"active": 1, "kl": 0.3}}
    scores = {"control": 0.2}
    probes = {
        "shared_x": {
            "x_color": {
                "kind": "quantity",
                "chance": 0.0,
                "n": 20,
                "mean": scores,
                "sample": scores,
            }
        }
    }
    lines = warnings_of(latents, probes)
    assert (
        lines[0]
        == "the shared x latent has collapsed: no dimension of its mean moves with the data"
    )
    assert lines[1] == "the exclusive y latent says next to nothing: 0.3 nats, 1 active"
    wide = {"shared_x": {"active": 1, "kl": 9.0, "dimensions": 16}}
    assert warnings_of(wide, {"shared_x": {}}, 15) == [] and len(warnings_of(wide, probes, 16)) == 2
    assert warnings_of(wide, probes, 15)[0].startswith(
        "probes of the shared x latent learn from 15 rows, fewer than"
    )
    assert (
        len(lines) == 4
        and "shuffled x_color reads 0.20 from shared x (mean), chance is 0.00" in lines[2]
    )


def test_rows_that_share_a_picture_are_one_item():
    split = Split(Side(np.zeros((5, 1)), list("aabcd")), Side(np.zeros((5, 1)), list("pqqrs")))
    items = items_of(split)
    assert items[0] == items[1] == items[2] and len(set(items.tolist())) == 3


def test_tables_and_section_say_the_same(known):
    _, probes, latents = known
    figures = {"latents": latents, "probes": probes, "warnings": [], "swaps": {}}
    tables = disentanglement_tables(figures)
    assert [len(table.rows) for table in tables] == [4, 16, 16]
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
    assert ("exclusive x", "x_color", "yes") in [row[:3] for row in tables[1].rows]
    assert ("exclusive x", "mood", "") in [row[:3] for row in tables[1].rows]
    section = disentanglement_section(figures, {"probe_rows": ROWS})
    assert (
        section.rows == ROWS and section.learning == 0 and section.swaps is section.bounds is None
    )
    assert [chart.title for chart in section.charts] == [
        f"Linear probes of the {one} latents" for one in _KINDS
    ]
    assert "x: class (belongs): mean" in section.charts[0].text and b"<svg" in section.charts[0].svg
    assert disentanglement_section({}, {}) is None and disentanglement_tables({}) == []


_KINDS = ("shared", "exclusive")


# ---- swaps


def test_how_far_latents_moved():
    given = normal(8, 500, 4)
    assert moved(given, given) == 0
    assert moved(normal(9, 500, 4), given) == pytest.approx(1.0, abs=0.05)
    assert moved(given[:3], np.ones((3, 4), np.float32)) is None


def perfect_model():
    """Features (shared, exclusive) side by side, taken apart and put together exactly."""

    class Perfect(torch.nn.Module):
        exclusive_dim = 2

        def encode_shared(self, domain, inputs):
            return Normal(inputs[:, :3], 1.0)

        def encode_exclusive(self, domain, inputs):
            return Normal(inputs[:, 3:], 1.0)

        def decode(self, domain, shared, exclusive):
            return torch.cat([shared, exclusive], dim=1)

    return Perfect()


def test_a_perfect_model_keeps_content_and_follows_manner():
    x, y = normal(10, 30, 5), normal(11, 30, 5)
    y[:, :3] = x[:, :3]
    parts = [Encoded(shared_mean=one[:, :3], exclusive_mean=one[:, 3:]) for one in (x, y)]
    figures = swap_figures(
        TrainedModel(perfect_model(), None), EncodedPairs(*parts), split_of(x, y), rows=20
    )
    assert set(figures) == {"x_to_x", "x_to_y", "y_to_x", "y_to_y"}
    for way, one in figures.items():
        assert one["shared_recall@1"] == one["exclusive_recall@1"] == 1.0 and one["n"] == 20
        assert one["shared_distance"] == 0 and one["exclusive_r2"] == 1.0
        assert ("return_recall@1" in one) == (way in ("x_to_y", "y_to_x"))
    assert figures["x_to_y"]["return_distance"] == 0 and figures["x_to_y"][
        "round_trip_l1"
    ] == pytest.approx(0)


def test_a_decoder_that_ignores_its_reference_is_found_out():
    model = perfect_model()
    model.decode = lambda domain, shared, exclusive: torch.cat(
        [shared, torch.zeros_like(exclusive)], dim=1
    )
    x = normal(12, 200, 5)
    part = Encoded(shared_mean=x[:, :3], exclusive_mean=x[:, 3:])
    figures = swap_figures(TrainedModel(model, None), EncodedPairs(part, part), split_of(x, x))
    assert figures["x_to_y"]["shared_recall@1"] == 1.0
    assert figures["x_to_y"]["exclusive_recall@1"] < 0.05
    assert figures["x_to_y"]["exclusive_r2"] == pytest.approx(0, abs=0.05)


def test_swaps_equal_a_direct_computation_at_every_batch_size():
    model, split = small_image_model(channels_y=1), split_of(pictures(13), pictures(14, channels=1))
    pairs = encode(model, split)
    figures = [
        swap_figures(TrainedModel(model, None), pairs, split, batch_size=size) for size in (2, 256)
    ]
    for way in figures[0]:
        assert figures[0][way] == pytest.approx(figures[1][way], rel=1e-4, abs=1e-6)
    from iiae_cli.evaluation.swaps import _draw

    contents, references = _draw(9, 9, 1000, 0)
    assert sorted(references) == list(range(9)) and not (contents == references).any()
    with torch.no_grad():
        made = model.decode(
            "y",
            torch.from_numpy(pairs.x.shared_mean),
            torch.from_numpy(pairs.y.exclusive_mean[references]),
        )
        again = model.encode_shared("y", made).mean.flatten(1).numpy()
    assert figures[1]["x_to_y"]["shared_distance"] == pytest.approx(
        moved(again, pairs.x.shared_mean), rel=1e-4
    )


def test_swaps_without_exclusive_latents_and_with_unequal_domains():
    model = small_image_model(channels_y=1, exclusive_latents=False)
    split = split_of(pictures(15), pictures(16, channels=1))
    figures = swap_figures(TrainedModel(model, None), encode(model, split), split)
    assert (
        "exclusive_r2" not in figures["x_to_y"] and figures["x_to_y"]["return_distance"] is not None
    )
    x, y = normal(17, 9, 5), normal(18, 4, 5)
    parts = [Encoded(shared_mean=one[:, :3], exclusive_mean=one[:, 3:]) for one in (x, y)]
    found = swap_figures(TrainedModel(perfect_model(), None), EncodedPairs(*parts), split_of(x, y))
    assert {way: one["n"] for way, one in found.items()} == {
        "x_to_x": 9,
        "x_to_y": 4,
        "y_to_x": 4,
        "y_to_y": 4,
    }
    assert (
        swap_figures(
            TrainedModel(perfect_model(), None), EncodedPairs(*parts), split_of(x[:1], y[:1])
        )
        == {}
    )


# ---- bounds


def test_bounds_equal_torchs_divergences():
    model, split = small_image_model(channels_y=1), split_of(pictures(19), pictures(20, channels=1))
    for weights in model.parameters():
        weights.data.mul_(8.0 if weights.ndim > 1 else 1.0)  # so that the latents say something
    figures = bound_figures(TrainedModel(model, None), split, weight=1000.0, batch_size=4)
    model.eval()
    with torch.no_grad():
        posteriors = model.infer(
            *(to_inputs(split.side(domain).rows, None) for domain in ("x", "y"))
        )

    def distribution(one):
        return Normal(one.mean, torch.exp(0.5 * one.logvar))

    def nats(q, p):
        return float(kl_divergence(distribution(q), p).flatten(1).sum(1).mean())

    joint, prior = posteriors.joint_shared, Normal(0.0, 1.0)
    assert figures["shared"] == pytest.approx(nats(joint, prior), rel=1e-4) and figures["rows"] == 9
    # What z^s says of x beyond y is bounded by the divergence from y's posterior, not from x's.
    assert figures["x"]["shared_given_other"] == pytest.approx(
        nats(joint, distribution(posteriors.shared["y"])), rel=1e-4
    )
    assert figures["y"]["shared_given_other"] == pytest.approx(
        nats(joint, distribution(posteriors.shared["x"])), rel=1e-4
    )
    own = nats(posteriors.exclusive["x"], prior)
    assert figures["x"]["exclusive"] == pytest.approx(own, rel=1e-4)
    error = figures["x"]["exclusive_shared_plus_entropy"] - own - figures["shared"]
    assert 0 < error / 1000 < 2  # a mean difference of pixels in [−1, 1]
    assert figures == bound_figures(TrainedModel(model, None), split, weight=1000.0, batch_size=4)


def test_bounds_of_features_without_exclusive_latents():
    torch.manual_seed(4)
    model = feature_iiae(
        width_x=7,
        width_y=5,
        feature_width=6,
        shared_dim=4,
        exclusive_latents=False,
        standardise=True,
    )
    figures = bound_figures(
        TrainedModel(model, None), split_of(normal(21, 6, 7), normal(22, 6, 5)), loss="l2"
    )
    assert set(figures["x"]) == {"shared_given_other"} and figures["shared"] > 0


# ---- the command


def test_the_command_measures_and_gates(iiae, trained):
    base = ("evaluate", "--run", trained.run, "--task", "disentanglement", "--probe-rows", 100)
    ceiling = "disentanglement.probes.exclusive_x.x_color.mean.linear=0.5"
    outcome = iiae(*base, "--fail-over", ceiling, "--json")
    assert outcome.code == 2 and "above 0.5" in outcome.error()[0]
    found = outcome.json["disentanglement"]
    assert set(found) >= {
        "exclusive_kl",
        "factors",
        "latents",
        "probes",
        "swaps",
        "bounds",
        "warnings",
    }
    assert set(found["latents"]) == {"shared_x", "shared_y", "exclusive_x", "exclusive_y"}
    assert set(found["probes"]["shared_y"]) == {"class", "x_color", "y_color"}
    assert found["probes"]["exclusive_x"]["x_color"]["mean"]["linear"] > 0.8
    assert found["probes"]["shared_x"]["class"]["mean"]["linear"] > 0.4
    assert (
        len(found["latents"]["exclusive_x"]["kl_per_dimension"])
        == found["latents"]["exclusive_x"]["dimensions"]
    )
    assert found["swaps"]["x_to_y"]["n"] == 300 and found["bounds"]["rows"] == 100
    assert outcome.json["protocol"]["probe_rows"] == 100
    assert outcome.json["protocol"]["probe_rows_learnt_from_train"] == 0
    shown = iiae(*base)
    lines = [line.split("\t") for line in shown.out.splitlines()]
    assert lines[0][0] == "latent" and ["shared x", "class", "yes"] in [line[:3] for line in lines]
    assert any(line[0].startswith("I(X; Zs | Y)") for line in lines)


def test_own_factors_from_the_file_and_the_command_line(iiae, trained, tmp_path):
    path = tmp_path / "more.h5"
    path.write_bytes(trained.data.read_bytes())
    with h5py.File(path, "r+") as file:
        for split in ("train", "valid", "test"):
            count = len(file[split]["x"])
            labels = [str(one) for one in file[split]["x_labels"].asstr()[()]]
            rng = np.random.default_rng(count)
            file[split].create_dataset("factors/y_noise", data=rng.standard_normal(count))
            file[split].create_dataset(
                "factors/round",
                data=["yes" if one in "0689" else "no" for one in labels],
                dtype=h5py.string_dtype(),
            )
    base = (
        "evaluate",
        "--run",
        trained.run,
        "--data",
        path,
        "--task",
        "disentanglement",
        "--probe-rows",
        320,
    )
    outcome = iiae(*base, "--shared-factor", "round", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["disentanglement"]["probes"]["shared_x"]
    assert outcome.json["protocol"]["probe_rows_learnt_from_train"] == 20
    assert found["round"]["belongs"] is True and found["round"]["chance"] == 0.5
    assert found["round"]["mean"]["linear"] > 0.6
    assert found["y_noise"]["belongs"] is False and found["y_noise"]["mean"]["linear"] < 0.1
    refused = iiae(*base, "--shared-factor", "square")
    assert refused.code == 2 and "square" in refused.error()[0] and "round" in refused.error()[1]
