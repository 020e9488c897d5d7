"""The approximate index: found neighbours are exact ones, the file is checked before it is believed."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from iiae_cli.common.tensors import read_tensors, save_tensors
from iiae_cli.inference import approximate
from iiae_cli.inference.approximate import divide, read_division, search
from iiae_cli.inference.retrieval import nearest, within

pytestmark = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 16))
    draw = [
        centres[rng.integers(0, 20, rows)] + 0.5 * rng.standard_normal((rows, 16))
        for rows in (150, 3000)
    ]
    return draw[0].astype(np.float32), draw[1].astype(np.float32)


def found(latents, tmp_path, **options):
    settings = {
        "metric": "euclidean",
        "path": tmp_path / "z.faiss",
        "fingerprint": "f" * 16,
        **options,
    }
    return search(*latents, 10, **settings)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_recall_is_measured_against_exact_neighbours(latents, tmp_path, metric):
    first = found(latents, tmp_path, metric=metric)
    exact, lengths = nearest(*latents, 10, metric=metric)
    true = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(first.rows, exact, strict=True)])
    assert first.recall >= approximate.RECALL and first.sample == 100
    assert true > 0.9
    assert first.built and first.sample == 100 and 8 <= first.probes <= first.lists == 55
    same = (first.rows == exact).all(axis=1)
    np.testing.assert_array_equal(first.distances[same], lengths[same])  # the same bits
    again = found(latents, tmp_path, metric=metric)
    assert not again.built
    np.testing.assert_array_equal(again.rows, first.rows)


def test_looking_into_every_list_is_exact(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "RECALL", 1.1)  # never reached
    result = found(latents, tmp_path)
    assert result.probes == result.lists and result.recall == 1.0
    np.testing.assert_array_equal(result.rows, nearest(*latents, 10)[0])


def test_more_neighbours_than_a_list_holds(latents, tmp_path):
    queries, gallery = latents
    result = search(
        queries[:5], gallery, 2999, metric="euclidean", path=tmp_path / "z.faiss", fingerprint="f"
    )
    assert result.rows.shape == (5, 2999)
    assert all(len(set(line)) == 2999 for line in result.rows.tolist())


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_tiny_galleries(latents, tmp_path, rows):
    queries, gallery = latents[0], latents[1][:rows]
    result = search(
        queries, gallery, 5, metric="cosine", path=tmp_path / "z.faiss", fingerprint="f"
    )
    np.testing.assert_array_equal(result.rows, nearest(queries, gallery, 5, metric="cosine")[0])


def test_an_index_of_other_rows_model_or_metric_is_made_again(latents, tmp_path):
    queries, gallery = latents
    assert found(latents, tmp_path).built
    changed = gallery.copy()
    changed[17, 3] += 1
    assert found((queries, changed), tmp_path).built
    assert found(latents, tmp_path).built
    assert found(latents, tmp_path, fingerprint="e" * 16).built
    assert found(latents, tmp_path, metric="cosine").built
    assert not found(latents, tmp_path, metric="cosine").built


def test_damaged_and_hostile_files_are_made_again_not_believed(latents, tmp_path):
    path = tmp_path / "z.faiss"
    found(latents, tmp_path)
    good = path.read_bytes()
    header, tensors = read_tensors(path, approximate.SCHEMA, "")
    tensors = {name: one.clone() for name, one in tensors.items()}
    expected = found(latents, tmp_path)
    for bad in (
        b"",
        b"IxFl" * 100,
        good[:1000],
        good[:-1],
        good[:-50] + bytes(50),
        b"\xff" * 8 + good[8:],
    ):
        path.write_bytes(bad)
        result = found(latents, tmp_path)
        assert result.built
        np.testing.assert_array_equal(result.rows, expected.rows)
    lists, centroids = tensors["list_of"], tensors["centroids"]
    hostile = [
        {"list_of": lists + 10_000},
        {"list_of": -1 - lists},
        {"list_of": lists[:-1]},
        {"list_of": lists.long()},
        {"centroids": centroids[:, :-1]},
        {"centroids": centroids[:0]},
        {"centroids": centroids * torch.nan},
        {"centroids": centroids[0]},
    ]
    for change in hostile:  # each with a checksum that fits
        tampered = {name: one.contiguous() for name, one in {**tensors, **change}.items()}
        content = approximate._content(tampered["centroids"], tampered["list_of"])
        save_tensors(tampered, path, {**header, "content": content})
        assert found(latents, tmp_path).built
    save_tensors({"list_of": lists}, path, header)
    assert found(latents, tmp_path).built


def test_wrong_lists_cost_recall_which_is_seen(latents, tmp_path):
    """A well-formed file with shuffled lists: neighbours are missed, so more lists are looked into."""
    path = tmp_path / "z.faiss"
    honest = found(latents, tmp_path)
    header, tensors = read_tensors(path, approximate.SCHEMA, "")
    lists = tensors["list_of"][torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    save_tensors(
        {**tensors, "list_of": lists},
        path,
        {**header, "content": approximate._content(tensors["centroids"], lists)},
    )
    result = found(latents, tmp_path)
    assert (
        not result.built and result.probes > honest.probes and result.recall >= approximate.RECALL
    )


def test_a_division_covers_every_row(latents):
    division = divide(latents[1], "euclidean")
    assert division.list_of.shape == (3000,) and division.centroids.shape == (55, 16)
    distances = np.square(latents[1][:, None] - division.centroids[None]).sum(axis=2)
    np.testing.assert_array_equal(division.list_of, distances.argmin(axis=1))
    assert read_division(Path("nowhere.faiss"), {}, (3000, 16)) is None


def test_within_orders_given_candidates_exactly(latents):
    queries, gallery = latents
    rng = np.random.default_rng(1)
    candidates = np.stack([rng.permutation(3000)[:40] for _ in queries])
    candidates[:, 30:] = -1
    rows, distances = within(queries, gallery, candidates, 5, metric="euclidean")
    for query, row, distance, given in zip(queries, rows, distances, candidates, strict=True):
        some = np.sort(given[:30])
        expected, lengths = nearest(query[None], gallery[some], 5)
        np.testing.assert_array_equal(row, some[expected[0]])
        np.testing.assert_array_equal(distance, lengths[0])
