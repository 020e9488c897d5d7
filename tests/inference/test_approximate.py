"""The approximate index: neighbours are measured exactly; a file that does not fit is replaced."""

from importlib.util import find_spec

import numpy as np
import pytest

from iiae_cli.inference import approximate
from iiae_cli.inference.approximate import search
from iiae_cli.inference.neighbours import nearest

pytestmark = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")


@pytest.fixture(scope="module")
def latents():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 16))
    draws = [
        centres[rng.integers(0, 20, rows)] + 0.5 * rng.standard_normal((rows, 16))
        for rows in (150, 3000)
    ]
    return draws[0].astype(np.float32), draws[1].astype(np.float32)


def found(latents, tmp_path, k=10, metric="euclidean", fingerprint="f" * 16):
    path = tmp_path / "z.faiss"
    return search(*latents, k, metric=metric, path=path, fingerprint=fingerprint)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_recall_is_measured_against_exact_neighbours(latents, tmp_path, metric):
    first = found(latents, tmp_path, metric=metric)
    exact, distances = nearest(*latents, 10, metric=metric)
    true = np.mean(
        [len(np.intersect1d(*pair)) / 10 for pair in zip(first.rows, exact, strict=True)]
    )
    assert first.recall >= approximate.RECALL and first.sample == 100 and true > 0.9
    assert first.built and 8 <= first.probes <= first.lists == 55
    same = (first.rows == exact).all(axis=1)
    np.testing.assert_allclose(first.distances[same], distances[same], rtol=1e-9)
    again = found(latents, tmp_path, metric=metric)
    assert not again.built
    np.testing.assert_array_equal(again.rows, first.rows)


def test_looking_into_every_list_is_exact(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "RECALL", 1.1)  # never reached
    result = found(latents, tmp_path)
    assert result.probes == result.lists and result.recall == 1.0
    np.testing.assert_array_equal(result.rows, nearest(*latents, 10)[0])


def test_more_neighbours_than_a_list_holds(latents, tmp_path):
    result = found((latents[0][:5], latents[1]), tmp_path, k=2999)
    assert all(len(set(line)) == 2999 for line in result.rows.tolist())


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_tiny_galleries(latents, tmp_path, rows):
    queries, gallery = latents[0], latents[1][:rows]
    result = found((queries, gallery), tmp_path, k=5, metric="cosine")
    np.testing.assert_array_equal(result.rows, nearest(queries, gallery, 5, metric="cosine")[0])


def test_an_index_of_other_rows_model_or_metric_is_made_again(latents, tmp_path):
    changed = latents[1].copy()
    changed[17, 3] += 1
    assert found(latents, tmp_path).built
    assert found((latents[0], changed), tmp_path).built
    assert found(latents, tmp_path).built
    assert found(latents, tmp_path, fingerprint="e" * 16).built
    assert found(latents, tmp_path, metric="cosine").built
    assert not found(latents, tmp_path, metric="cosine").built


def test_a_damaged_file_is_made_again(latents, tmp_path):
    path, expected = tmp_path / "z.faiss", found(latents, tmp_path)
    good = path.read_bytes()
    for bad in (b"", b"IxFl" * 100, good[:1000], good[:-1], good[:-50] + bytes(50)):
        path.write_bytes(bad)
        result = found(latents, tmp_path)
        assert result.built
        np.testing.assert_array_equal(result.rows, expected.rows)
