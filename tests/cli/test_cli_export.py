"""`iiae export`: the folder reads back as the run, graphs answer like the model, the hub too."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import small_model
from PIL import Image

from iiae_cli.inference.export import Decoder, Encoder, largest_difference
from iiae_cli.runs import RunDir, load_model

ROWS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)


def header_of(folder):
    _, header, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), body


def test_weights_and_card_alone_are_a_run(iiae, run):
    Path("figures.json").write_text(json.dumps({"retrieval": {"baseline": {"n": 300}}}))
    named = ("--figures", "figures.json", "--license", "mit", "--json")
    result = iiae("export", run, "-o", "out", *named).json
    assert result["schema"] == "iiae.export/1" and result["difference"] == {}
    assert {path.name for path in Path("out").iterdir()} == {
        *("README.md", "config.yaml", "model.safetensors")
    }
    header, body = header_of(Path("out"))
    assert header["license"] == "mit" and "n: 300" in body and result["fingerprint"] in body
    assert load_model(RunDir(Path("out"))).fingerprint == result["fingerprint"]
    Image.fromarray(ROWS[0]).save("a.png")
    encoded = iiae("encode", "a.png", "--domain", "x", "--run", "out", "-o", "z.h5", "--json").json
    assert encoded["fingerprint"] == result["fingerprint"]
    assert "--overwrite" in iiae("export", run, "-o", "out").error()[1]


def test_a_torch_program_takes_any_number_of_rows(iiae, run):
    result = iiae("export", run, "-o", "out", "--format", "torch", "--json").json
    names = {f"{part}-{domain}.pt2" for part in ("encoder", "decoder") for domain in "xy"}
    assert set(result["difference"]) == names and max(result["difference"].values()) < 1e-5
    encode = torch.export.load("out/encoder-x.pt2").module()
    shared, exclusive = encode(torch.from_numpy(ROWS))
    assert len(shared) == 7 and exclusive.shape == (7, 8)
    sizes = [path.stat().st_size for path in Path("out").glob("*.pt2")]
    assert sum(sizes) < 1.5 * Path("out/model.safetensors").stat().st_size  # each weight once
    assert iiae("export", run, "-o", "out", "--overwrite").code == 0
    assert not list(Path("out").glob("*.pt2"))  # no graphs of an export before


def test_large_values_may_differ_by_their_rounding_and_nothing_hides_nan():
    wanted = [torch.tensor([0.5, 0.0]), torch.tensor([1800.0, 0.0])]
    close = [np.array([0.5, 1e-5]), np.array([1800.0, 7e-4])]
    assert largest_difference(close, wanted) == pytest.approx(1e-5)
    close[1][0] = np.nan
    assert np.isnan(largest_difference(close, wanted))


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnx is not installed")
def test_an_onnx_graph_answers_as_the_model_does(iiae, run):
    import onnxruntime

    import iiae_cli

    result = iiae("export", run, "-o", "out", "--format", "onnx", "--json").json
    assert len(result["difference"]) == 4 and max(result["difference"].values()) <= 1e-4
    session = onnxruntime.InferenceSession("out/encoder-x.onnx")
    assert [output.name for output in session.get_outputs()] == ["shared", "exclusive"]
    assert session.get_inputs()[0].shape == ["batch", 32, 32, 3]
    shared, exclusive = session.run(None, {"rows": ROWS})
    z = iiae_cli.load("out", device="cpu").encode(ROWS, "x")
    np.testing.assert_allclose(shared, z.shared, atol=1e-4)
    np.testing.assert_allclose(exclusive, z.exclusive, atol=1e-4)


def test_without_onnx_the_error_names_the_extra(iiae, run, monkeypatch):
    monkeypatch.setattr("iiae_cli.inference.export.find_spec", lambda name: None)
    error, hint = iiae("export", run, "-o", "out", "--format", "onnx").error()
    assert "onnx is not installed" in error and "iiae-cli[onnx]" in hint
    assert "me/mine" in iiae("export", run, "-o", "out", "--push", "mine").error()[1]
    assert not Path("out").exists()  # so that the same command serves again


@pytest.mark.parametrize("exclusive", [0, 3])
def test_parts_of_features_and_of_models_without_exclusive_latents(exclusive):
    model = small_model("features", exclusive_dim=exclusive).eval()
    rows = torch.randn(4, 7)
    with torch.no_grad():
        latents = Encoder(model, "x")(rows)
        assert len(latents) == (2 if exclusive else 1)
        (decoded,) = Decoder(model, "y")(*latents)
        direct = model.decode("y", latents[0], latents[1] if exclusive else None)
    assert torch.equal(decoded, direct) and decoded.shape == (4, 5)


def test_a_run_is_pushed_and_pulled(iiae, run, tmp_path, monkeypatch):
    """A folder stands in for the hub."""
    store, made = tmp_path / "hub", []

    class Api:
        def create_repo(self, name, **options):
            made.append((name, options))

        def upload_folder(self, *, folder_path, repo_id):
            Path(folder_path).rename(store / repo_id)

    (store / "me").mkdir(parents=True)
    stand_in = SimpleNamespace(HfApi=Api, snapshot_download=lambda name, **_: str(store / name))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    result = iiae("export", run, "-o", "out", "--push", "me/digits", "--json").json
    assert result["pushed"] == "hf://me/digits"
    assert made == [("me/digits", {"private": True, "exist_ok": True})]
    Image.fromarray(ROWS[0]).save("a.png")
    pulled = ("encode", "a.png", "--domain", "x", "--run", "hf://me/digits", "-o", "z.h5")
    assert iiae(*pulled, "--json").json["fingerprint"] == result["fingerprint"]


class NoRoute(Exception):
    """As of an HTTP library, which is no OSError."""


def test_what_the_hub_refuses_is_a_users_error(iiae, run, monkeypatch):
    def refuse(*_, **options):
        raise NoRoute("401: no model")

    stand_in = SimpleNamespace(snapshot_download=refuse, HfApi=refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    pull, push = ("evaluate", "--run"), ("export", run, "-o", "out", "--push")
    for command in ((*pull, "hf://no/such"), (*push, "no/such")):
        error, hint = iiae(*command).error()
        assert "hf://no/such" in error and "401" in error and "hf auth login" in hint
