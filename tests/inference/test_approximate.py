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


def found(latents, tmp_path, k=10, **options):
    settings = {"metric": "euclidean", "fingerprint": "f" * 16, **options}
    return search(*latents, k, path=tmp_path / "z.faiss", **settings)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_recall_is_measured_against_exact_neighbours(latents, tmp_path, metric):
    rows, distances, about = found(latents, tmp_path, metric=metric)
    exact, expected = nearest(*latents, 10, metric=metric)
    true = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(rows, exact, strict=True)])
    assert about["recall"] >= approximate.RECALL and about["sample"] == 100 and true > 0.9
    assert about["made"] and 8 <= about["probes"] <= about["lists"] == 55
    same = (rows == exact).all(axis=1)
    np.testing.assert_allclose(distances[same], expected[same], rtol=1e-9)
    again, _, about = found(latents, tmp_path, metric=metric)
    assert not about["made"]
    np.testing.assert_array_equal(again, rows)


def test_looking_into_every_list_is_exact(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "RECALL", 1.1)  # never reached
    rows, _, about = found(latents, tmp_path)
    assert about["probes"] == about["lists"] and about["recall"] == 1.0
    np.testing.assert_array_equal(rows, nearest(*latents, 10)[0])


def test_more_neighbours_than_a_list_holds(latents, tmp_path):
    rows, *_ = found((latents[0][:5], latents[1]), tmp_path, k=2999)
    assert all(len(set(line)) == 2999 for line in rows.tolist())


@pytest.mark.parametrize("count", [1, 2, 60])
def test_tiny_galleries(latents, tmp_path, count):
    queries, gallery = latents[0], latents[1][:count]
    rows, *_ = found((queries, gallery), tmp_path, k=5, metric="cosine")
    np.testing.assert_array_equal(rows, nearest(queries, gallery, 5, metric="cosine")[0])


def test_an_index_of_other_rows_model_or_metric_is_made_again(latents, tmp_path):
    changed = latents[0], latents[1] + 1
    for rows, options in (
        (latents, {}),
        (changed, {}),
        (latents, {"fingerprint": "e" * 16}),
        (latents, {"metric": "cosine"}),
    ):
        assert found(rows, tmp_path, **options)[2]["made"]
    assert not found(latents, tmp_path, metric="cosine")[2]["made"]


def test_a_damaged_file_is_made_again(latents, tmp_path):
    path, (expected, *_) = tmp_path / "z.faiss", found(latents, tmp_path)
    good = path.read_bytes()
    for bad in (b"", b"IxFl" * 100, good[:-1], good[:-50] + bytes(50)):
        path.write_bytes(bad)
        rows, _, about = found(latents, tmp_path)
        assert about["made"]
        np.testing.assert_array_equal(rows, expected)
