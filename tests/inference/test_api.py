"""A run from Python: every form of pictures, galleries in memory and on disk, types of a script."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, small_model, untrained_run
from PIL import Image

import iiae_cli as iiae
from iiae_cli.config import Config
from iiae_cli.data.datafile import DataInfo
from iiae_cli.inference.api import Model
from iiae_cli.runs import LoadedModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return iiae.load(untrained_run(tmp_path_factory.mktemp("api") / "run"), device="cpu")


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, pixels in zip(paths, pictures(4), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def pictures(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), np.uint8)


def test_paths_images_arrays_and_tensors_have_the_same_latents(model, files, tmp_path):
    rows = pictures(4)
    tensor = torch.from_numpy(rows).permute(0, 3, 1, 2)
    forms = [files, str(tmp_path), [Image.open(path) for path in files], rows, list(rows), tensor]
    latents = [model.encode(form, "x") for form in [*forms, tensor / 255]]
    for z in latents:
        np.testing.assert_allclose(z.shared, latents[0].shared, atol=1e-5)
        assert z.exclusive.shape == (4, 8) and z.domain == "x"
    assert latents[0].ids == list(map(str, files)) and latents[3].ids == ["0", "1", "2", "3"]
    alone = [files[2], Image.fromarray(rows[2]), rows[2], tensor[2]]
    for picture in alone:
        np.testing.assert_allclose(
            model.encode(picture, "x").shared[0], latents[0].shared[2], atol=1e-5
        )


def test_grey_and_larger_pictures_are_read_as_files_are(model, tmp_path):
    grey = pictures(1)[0, ..., 0].repeat(2, 0).repeat(2, 1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    by_file, by_array = (model.encode(given, "y") for given in (tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(by_file.shared, by_array.shared)


def test_a_model_of_features_takes_one_row_or_several():
    info = DataInfo("f", (7,), (5,), {}, {})
    loaded = LoadedModel(small_model("features"), Config(), info, None, "f" * 16, {})
    model, rows = Model(loaded, Path("none")), np.random.default_rng(0).normal(size=(4, 7))
    z = model.encode(rows, "x")
    assert z.ids == ["0", "1", "2", "3"] and model.translate(rows, "x").outputs.shape == (4, 3, 5)
    np.testing.assert_allclose(model.encode(rows[2], "x").shared, z.shared[2:3], atol=1e-5)
    assert "backbone" in refusal(model.encode, pictures(2), "x").message
    assert "(5,)" in refusal(model.encode, rows, "y").message


@pytest.mark.parametrize(
    "wrong, named",
    [
        (np.zeros((32, 32, 3)), "float64"),
        (np.zeros((32, 32, 5), np.uint8), "(32, 32, 5)"),
        (torch.full((3, 32, 32), 7.0), "float32"),
        ([], "no pictures"),
        (["a.png", np.zeros((32, 32, 3), np.uint8)], "mixed"),
    ],
)
def test_what_is_no_picture_is_refused(model, wrong, named):
    assert named in refusal(model.encode, wrong, "x").message


def test_what_cannot_be_read_is_named(model, files):
    files[1].write_bytes(b"broken")
    z = model.encode(files, "x")
    assert len(z.ids) == len(z.shared) == 3 and z.skipped[0].startswith(str(files[1]))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_gallery_in_memory_in_a_file_and_of_the_run_has_the_same_neighbours(
    model, tmp_path, metric
):
    gallery, queries = model.encode(pictures(30), "y"), model.encode(pictures(5, seed=1), "x")
    for path in (tmp_path / "z.h5", model.folder / "gallery.h5"):
        gallery.save(path)
    where = [gallery, tmp_path / "z.h5", str(tmp_path / "z.h5"), None]
    results = [model.retrieve(queries, place, 7, metric=metric) for place in where]
    results.append(model.retrieve(pictures(5, seed=1), gallery, 7, metric=metric))
    for hits in results:
        np.testing.assert_array_equal(hits.rows, results[0].rows)
        assert hits.ids.tolist() == hits.rows.astype(str).tolist() and hits.labels is None
        assert hits.distances.shape == (5, 7) and hits.metric == metric
    distances = np.linalg.norm(queries.shared[:, None] - gallery.shared[None], axis=2)
    if metric == "euclidean":
        np.testing.assert_array_equal(results[0].rows, np.argsort(distances, axis=1)[:, :7])


def test_latents_of_other_weights_are_refused(model):
    gallery = model.encode(pictures(3), "y")
    gallery.fingerprint = "0" * 16
    assert "0000" in refusal(model.retrieve, pictures(1), gallery).message


def test_translations_take_samples_or_references(model):
    drawn = model.translate(pictures(3), "x", samples=2, seed=1)
    assert drawn.outputs.shape == (3, 2, 32, 32, 3) and drawn.styles == ["sample 1", "sample 2"]
    by_reference = model.translate(pictures(3), "x", reference=pictures(2, seed=5))
    assert by_reference.outputs.shape == (3, 2, 32, 32, 3) and by_reference.ids == ["0", "1", "2"]
    analogy = model.translate(pictures(1), "x", "x", reference=Image.fromarray(pictures(1)[0]))
    z = model.encode(pictures(1), "x")
    shared, exclusive = torch.from_numpy(z.shared), torch.from_numpy(z.exclusive)
    direct = model.trained.decode("x", shared, exclusive)
    np.testing.assert_allclose(analogy.outputs[:, 0].astype(int), direct, atol=1)


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_a_users_script_passes_mypy(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # Under the repository's own configuration, which is strict too, what its checks read is cached.
    command = [sys.executable, "-m", "mypy", str(tmp_path / "script.py")]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


SCRIPT = """
from pathlib import Path
import numpy as np
from numpy.typing import NDArray
import iiae_cli as iiae

model = iiae.load("runs/latest")
z = model.encode(sorted(Path("photos").glob("*.png")), domain="x")
shared: NDArray[np.float32] = z.shared
hits = model.retrieve(z, "z.h5", k=5)
names: list[list[str]] = hits.ids.tolist()
pictures: NDArray[np.uint8] = model.translate("a.png", source="x", reference="b.png").outputs
"""


def test_the_notebook_runs_in_a_folder_with_nothing_but_a_run(tmp_path, model, monkeypatch):
    model.encode(pictures(9, seed=3), "y").save(model.folder / "gallery.h5")
    shutil.copytree(model.folder, tmp_path / "runs" / "latest")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    scope: dict[str, object] = {}
    for cell in cells:
        exec(cell, scope)
    assert len(cells) >= 4 and {"z", "hits", "translated"} <= set(scope)
