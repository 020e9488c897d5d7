"""Disentanglement on latents made by hand, swaps and bounds by direct computation, the command."""

import h5py
import numpy as np
import pytest
import torch
from helpers import small_model
from torch.distributions import Normal, kl_divergence

from iiae_cli.common import console
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation import disentanglement
from iiae_cli.evaluation.disentanglement import LATENTS, ProbedRows, belongs, bound_figures
from iiae_cli.evaluation.figures import figure_tables
from iiae_cli.evaluation.probes import draw_folds, read_factor
from iiae_cli.evaluation.retrieval import encode_pairs
from iiae_cli.evaluation.translation import Subject, swap_figures
from iiae_cli.inference.trained import Encoded, TrainedModel
from iiae_cli.model.iiae import IIAE
from iiae_cli.model.networks import FeatureNetworks
from iiae_cli.model.objective import bound

ROWS = 400


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def split_of(x, y):
    return Split(*(Side(rows, [f"t/{row}" for row in range(len(rows))]) for rows in (x, y)))


def subject_of(model, split, **options):
    trained = TrainedModel(model, None)
    return Subject(trained, encode_pairs(trained, split), split, **options)


# ---- probes by latent, on latents whose content is known


@pytest.fixture(scope="module")
def known():
    """Shared x holds the class and, faintly, x's colour; the others what they should."""
    codes = np.random.default_rng(1).integers(0, 4, ROWS)
    colours, centres = {"x": normal(2, ROWS, 3), "y": normal(3, ROWS, 3)}, 4 * normal(5, 4, 6)
    leak = np.hstack([0.03 * colours["x"], normal(6, ROWS, 3)])
    shared = {"x": np.hstack([centres[codes], leak]), "y": centres[codes] + normal(7, ROWS, 6)}
    encoded = {
        domain: Encoded(
            shared_mean=shared[domain],
            shared_logvar=np.full_like(shared[domain], -2.0),  # a deviation of 0.37
            exclusive_mean=colours[domain],
            exclusive_logvar=np.full_like(colours[domain], -6.0),
        )
        for domain in ("x", "y")
    }
    columns = {"class": codes, "x_color": colours["x"], "y_color": colours["y"]}
    columns["mood"] = normal(4, ROWS)
    factors = [read_factor(name, values, np.empty(0)) for name, values in columns.items()]
    rows = {d: ProbedRows(encoded[d], factors, draw_folds(np.arange(ROWS))) for d in encoded}
    probes = disentanglement.probe_figures(rows)
    return probes, disentanglement.latent_figures(encoded, probes)


def test_a_leak_of_the_mean_that_samples_hide(known):
    probes, latents = known
    leak = probes["shared_x"]["x_color"]
    assert leak["belongs"] is False and leak["kind"] == "quantity"
    assert leak["n"] == ROWS and leak["chance"] == 0
    assert leak["mean"]["linear"] > 0.99
    # In samples 0.03² of signal stands against e^−2 of noise: R² is 0.007.
    assert leak["sample"]["linear"] < 0.05
    assert latents["shared_x"]["leakage_mean"] > 0.99
    assert latents["shared_x"]["leakage_sample"] < 0.06
    assert latents["shared_y"]["leakage_mean"] < 0.06
    assert latents["exclusive_x"]["leakage_mean"] < 0.15


def test_what_should_be_there_is(known):
    probes, latents = known
    for domain in ("x", "y"):
        content, shared = probes[f"shared_{domain}"]["class"], latents[f"shared_{domain}"]
        own, exclusive = probes[f"exclusive_{domain}"], latents[f"exclusive_{domain}"]
        assert content["belongs"] is True and content["kind"] == "classes"
        assert shared["informativeness_mean"] > 0.9 and shared["informativeness_sample"] > 0.85
        # A sample's noise has variance e^−6.
        sampled = own[f"{domain}_color"]["sample"]["linear"]
        assert sampled == pytest.approx(0.997, abs=0.003)
        assert exclusive["informativeness_mean"] > 0.99 and exclusive["active"] == 3
    assert all(factors["mood"]["belongs"] is None for factors in probes.values())
    own, linear = disentanglement.own_factors(probes), probes["shared_x"]["x_color"]["mean"]
    assert set(own) == {"x_color", "y_color"}
    assert own["x_color"]["shared_mean"] == {"r2": linear["linear"]}
    # The dimensions of the leak move, but less than active means.
    assert latents["shared_x"]["active"] == 9 and latents["shared_x"]["dimensions"] == 12


@pytest.mark.parametrize(
    "names, where",
    [
        ("class shared_shape pitch x_mine", [True, True, False, False]),
        ("x_color", [False, False, True, False]),
        ("y_view", [False, False, False, True]),
        ("yaw xylem", [None] * 4),
    ],
)
def test_the_name_or_the_caller_says_where_a_factor_belongs(names, where):
    for name in names.split():
        assert [belongs(name, *latent, ["pitch", "x_mine"]) for latent in LATENTS] == where


def test_collapsed_latents_and_few_rows_are_warned_of(known):
    latents = {
        "shared_x": {"active": 0, "kl": 9.0, "dimensions": 16},
        "exclusive_y": {"active": 1, "kl": 0.3, "dimensions": 2},
    }
    few, collapsed, dying = disentanglement.warnings_of(latents, {"shared_x": {"x_color": {}}}, 15)
    assert "learn from 15 rows, fewer than its 16 dimensions" in few
    assert "shared x latent has collapsed" in collapsed and "0.3 nats" in dying
    probes, latents = known
    assert disentanglement.warnings_of(latents, probes, ROWS) == []


def test_rows_that_share_a_picture_are_one_item():
    sides = (Side(np.zeros((5, 1)), list(ids)) for ids in ("aabcd", "pqqrs"))
    items = disentanglement.items_of(Split(*sides))
    assert items[0] == items[1] == items[2] and len(set(items.tolist())) == 3


def test_tables_have_a_row_for_each_latent_and_factor(known):
    probes, latents = known
    measured = {"latents": latents, "probes": probes, "swaps": {}}
    tables = figure_tables({"disentanglement": measured})
    assert [len(table.rows) for table in tables] == [4, 32]
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
    scores = [row[3:7] for row in tables[1].rows]
    assert np.array_equal(scores, np.round(scores, 3))
    names = [(*row[:3], row[-1]) for row in tables[1].rows]
    assert ("exclusive_x", "x_color", "mean", "yes") in names
    assert ("exclusive_x", "mood", "sample", None) in names


# ---- swaps


class Perfect(torch.nn.Module):
    """Features (shared, exclusive) side by side, taken apart and put together exactly."""

    exclusive_dim = 2

    def encode_shared(self, domain, inputs):
        return Normal(inputs[:, :3], 1.0)

    def encode_exclusive(self, domain, inputs):
        return Normal(inputs[:, 3:], 1.0)

    def decode(self, domain, shared, exclusive):
        return torch.cat([shared, exclusive], dim=1)


class Deaf(Perfect):
    def decode(self, domain, shared, exclusive):
        return torch.cat([shared, torch.zeros_like(exclusive)], dim=1)


def swapped(model, x, y, **options):
    own = {"x": x, "y": y}
    pairs = {d: Encoded(shared_mean=own[d][:, :3], exclusive_mean=own[d][:, 3:]) for d in own}
    subject = Subject(TrainedModel(model, None), pairs, split_of(x, y), batch_size=8)
    return swap_figures(subject, **options)


def test_a_perfect_model_keeps_content_and_follows_manner():
    x, y = normal(10, 30, 5), normal(11, 30, 5)
    y[:, :3] = x[:, :3]
    figures = swapped(Perfect(), x, y, rows=20)
    perfect = {"shared_recall@1": 1, "shared_distance": 0, "exclusive_recall@1": 1}
    perfect |= {"exclusive_r2": 1, "n": 20}
    home = {"return_recall@1": 1, "return_distance": 0, "round_trip_l1": 0}
    for way in ("x_to_x", "y_to_y"):
        assert figures[way] == perfect
    for way in ("x_to_y", "y_to_x"):
        assert figures[way] == pytest.approx({**perfect, **home}, abs=1e-6)


def test_a_decoder_that_ignores_its_reference_is_detected():
    x = normal(12, 200, 5)
    figures = swapped(Deaf(), x, x)["x_to_y"]
    assert figures["shared_recall@1"] == 1.0 and figures["exclusive_recall@1"] < 0.05
    assert figures["exclusive_r2"] == pytest.approx(0, abs=0.05)


def test_domains_may_differ_in_length_and_latents_may_all_be_equal():
    x, y = normal(17, 9, 5), normal(18, 4, 5)
    counts = {way: figures["n"] for way, figures in swapped(Perfect(), x, y).items()}
    assert counts == {"x_to_x": 9, "x_to_y": 4, "y_to_x": 4, "y_to_y": 4}
    assert swapped(Perfect(), x[:1], y[:1]) == {}
    equal = swapped(Perfect(), np.ones_like(x), y)["x_to_x"]
    assert equal["shared_distance"] is equal["exclusive_r2"] is None


# ---- bounds


def test_bounds_equal_torchs_divergences():
    model, rng = small_model("maps"), np.random.default_rng(13)
    for weights in model.parameters():
        weights.data.mul_(8.0 if weights.ndim > 1 else 1.0)  # so that the latents say something
    x, y = (rng.integers(0, 256, (9, 16, 16, n)).astype(np.uint8) for n in (3, 1))
    subject = subject_of(model, split_of(x, y), batch_size=4)
    objective = bound("elbo+ii-mi", 5.0)
    figures = bound_figures(subject, objective)
    assert figures == bound_figures(subject, objective) and figures["rows"] == 9
    with torch.no_grad():
        posteriors = model.eval().infer(*map(subject.trained.inputs, (x, y)))

    def distribution(gaussian):
        return Normal(gaussian.mean, torch.exp(0.5 * gaussian.logvar))

    def nats(q, p):
        return pytest.approx(
            float(kl_divergence(distribution(q), p).flatten(1).sum(1).mean()), 1e-4
        )

    joint, prior = posteriors.joint_shared, Normal(0.0, 1.0)
    assert figures["shared"] == nats(joint, prior)
    # What z^s says of x beyond y is bounded by the divergence from y's posterior, not from x's.
    for domain, other in (("x", "y"), ("y", "x")):
        given = nats(joint, distribution(posteriors.shared[other]))
        assert figures[domain]["shared_given_other"] == given
        assert figures[domain]["exclusive"] == nats(posteriors.exclusive[domain], prior)
    own, with_shared = (figures["x"][f"exclusive{name}"] for name in ("", "_shared_plus_entropy"))
    assert 0 < with_shared - own - figures["shared"] < 2000  # thousand differences in [−1, 1]


def test_swaps_and_bounds_without_exclusive_latents():
    model = IIAE(FeatureNetworks(6, shared_dim=4), {"x": 7, "y": 5}, exclusive_dim=0)
    subject = subject_of(model, split_of(normal(21, 6, 7), normal(22, 6, 5)))
    swaps = swap_figures(subject)["x_to_y"]
    assert "exclusive_r2" not in swaps and swaps["return_distance"] is not None
    figures = bound_figures(subject, bound("ii", 5.0, reconstruction="l2"))
    assert set(figures["x"]) == {"shared_given_other"} and figures["shared"] > 0


# ---- the command


def test_the_command_measures_own_factors_shows_its_progress_and_gates(
    iiae, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    path = tmp_path / "more.h5"
    path.write_bytes(trained.data.read_bytes())
    with h5py.File(path, "r+") as file:
        for split in file.values():
            labels = split["x_labels"].asstr()[()]
            noise = np.random.default_rng(len(labels)).standard_normal(len(labels))
            split.create_dataset("factors/y_noise", data=noise)
            split.create_dataset("factors/round", data=[label in "0689" for label in labels])
    base = ("evaluate", "--run", trained.run, "--data", path, "--task", "disentanglement")
    ceiling = "disentanglement.probes.exclusive_x.x_color.mean.linear=0.5"
    more = ("--probe-rows", 320, "--shared-factor", "round", "--fail-over", ceiling, "--json")
    outcome = iiae(*base, *more)
    assert outcome.code == 2 and "above 0.5" in outcome.error()[0]
    for stage in ("300/300 rows", "8/8 readings", "300/300 swaps", "300/300 bounds"):
        assert f"\n{stage}, " in outcome.err
    measured, protocol = outcome.json["disentanglement"], outcome.json["protocol"]
    keys = "exclusive_kl factors latents probes swaps bounds warnings"
    assert set(measured) == set(keys.split())
    assert protocol["probe_rows"] == 300 and protocol["probe_rows_learnt_from_train"] == 20
    latent, found = measured["latents"]["exclusive_x"], measured["probes"]["shared_x"]
    assert len(latent["kl_per_dimension"]) == latent["dimensions"]
    assert set(found) == {"class", "x_color", "y_color", "y_noise", "round"}
    assert found["class"]["mean"]["linear"] > 0.4 and measured["swaps"]["x_to_y"]["n"] == 300
    assert found["round"]["belongs"] is True and found["round"]["chance"] == 0.5
    assert found["round"]["mean"]["linear"] > 0.6
    assert found["y_noise"]["belongs"] is False and found["y_noise"]["mean"]["linear"] < 0.1
    refused = iiae(*base, "--shared-factor", "square")
    assert refused.code == 2 and "square" in refused.error()[0] and "round" in refused.error()[1]
