"""The six commands on a small trained run, as users and scripts call them."""

import io
import json
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from iiae_cli.report.grids import FRAMES


@pytest.fixture
def query(trained):
    return trained.pictures / "test" / "x" / "00001.png"


def picture(path):
    return np.asarray(Image.open(path)).astype(float)


def outputs(result, row=0):
    return [output["file"] for output in result["results"][row]["outputs"]]


def test_a_run_directory_holds_what_the_contract_lists(trained):
    names = {path.name for path in trained.run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "model.safetensors", "checkpoints"}
    assert names >= {"gallery.h5", "samples", "run.json"}
    info = json.loads((trained.run / "run.json").read_text())
    assert info["state"] == "finished" and info["steps"] == 200
    assert set(info) >= {"versions", "git", "host", "command", "seconds"}
    text = (trained.run / "metrics.jsonl").read_text()
    metrics = [json.loads(line) for line in text.splitlines()]
    train = [line for line in metrics if line["kind"] == "train"]
    assert [line["step"] for line in train] == [50, 100, 150, 200]
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert {"reconstruction_x", "kl_exclusive_y", "kl_shared_x", "annealing", "lr"} <= set(train[0])
    assert [line["step"] for line in metrics if line["kind"] == "validation"] == [200]
    assert list(trained.run.glob("tensorboard/events*"))


# ---- evaluate


def test_evaluate_finds_shared_high_exclusive_at_chance_and_the_known_baseline(iiae, trained):
    gate = "retrieval.shared.x_to_y.recall@1"
    base = ("evaluate", "--run", trained.run, "--task", "all", "--probe-rows", 200, "--json")
    outcome = iiae(*base, "--fail-under", f"{gate}=0.5", "--fail-under", f"{gate}=1.01")
    assert outcome.code == 2 and "below 1.01" in outcome.error()[0]
    figures = outcome.json
    assert len(figures["failures"]) == 1 and gate in figures["failures"][0]
    for way in ("x_to_y", "y_to_x"):
        shared = figures["retrieval"]["shared"][way]
        assert shared["n"] == 300
        assert 0.75 < shared["recall@1"] <= shared["recall@5"] <= shared["recall@10"]
        # The digits are bilevel: pixels solve them.
        assert figures["retrieval"]["baseline"][way]["recall@1"] == 1.0
        assert figures["retrieval"]["exclusive"][way]["recall@1"] < 0.03
        assert 0 < figures["translation"][way]["l1"] < 0.25
    for factor in ("x_color", "y_color"):
        assert figures["disentanglement"]["factors"][factor]["exclusive_mean"]["r2"] > 0.8
    assert figures["protocol"]["split"] == "test"


def test_evaluate_in_a_pipe_is_tab_separated(iiae, trained):
    lines = [line.split("\t") for line in iiae("evaluate", "--run", trained.run).out.splitlines()]
    assert lines[0][:3] == ["latent", "direction", "recall@1"]
    ways = ("x_to_y", "y_to_x")
    assert [line[:2] for line in lines[1:]] == [
        [kind, way] for kind in ("baseline", "shared", "exclusive") for way in ways
    ]


# ---- encode


def test_encode_pictures_equals_encoding_the_prepared_file(iiae, trained):
    folder = trained.pictures / "test" / "y"
    base = ("--domain", "y", "--run", trained.run, "--json")
    result = iiae("encode", folder, *base, "-o", "z.h5", "--logvar").json
    assert (result["schema"], result["rows"], result["domain"]) == ("iiae.encode/1", 300, "y")
    iiae("encode", trained.data, *base, "-o", "h.h5", "--split", "test")
    with h5py.File("z.h5") as pictures, h5py.File("h.h5") as prepared:
        assert pictures["shared/mean"].shape == (300, 512)
        assert pictures["exclusive/logvar"].shape == (300, 8) and "logvar" not in prepared["shared"]
        means = (file["shared/mean"][()] for file in (pictures, prepared))
        np.testing.assert_allclose(*means, atol=1e-5)
        names = [Path(name).stem for name in pictures["ids"].asstr()[()]]
        assert names == [name.split("/")[1] for name in prepared["ids"].asstr()[()]]
        assert set(prepared["labels"].asstr()[()]) == set("0123456789")
        assert pictures.attrs["domain"] == "y"
        assert tuple(pictures.attrs["shared_shape"]) == (32, 4, 4)
        assert pictures.attrs["fingerprint"] == prepared.attrs["fingerprint"]
    again = ("encode", trained.data, *base, "-o", "h.h5", "--latents=shared", "--dtype=float16")
    assert "--overwrite" in iiae(*again).error()[1] and iiae(*again, "--overwrite").code == 0
    with h5py.File("h.h5") as file:
        assert "exclusive" not in file and file["shared/mean"].dtype == np.float16


# ---- retrieve


def test_retrieve_from_the_runs_gallery(iiae, trained, query):
    outcome = iiae("retrieve", query, "--run", trained.run, "--k", "1000")
    assert "300 entries, fewer than --k 1000" in outcome.err
    rows = (row.split("\t") for row in outcome.out.splitlines())
    names, ranks, _, distances, _ = zip(*rows, strict=True)
    assert {*names} == {str(query)} and ranks == tuple(map(str, range(1, 301)))
    assert sorted(distances, key=float) == [*distances]
    found = iiae("retrieve", trained.data, "--run", trained.run, "--k", "1", "--json").json
    assert found["schema"] == "iiae.retrieve/1"
    hits = [item["query"] == item["neighbours"][0]["id"] for item in found["results"]]
    figures = iiae("evaluate", "--run", trained.run, "--json").json["retrieval"]
    assert np.mean(hits) == pytest.approx(figures["shared"]["x_to_y"]["recall@1"])


def test_retrieve_reads_queries_from_a_cache_and_all_backends_agree(iiae, trained):
    iiae("encode", trained.data, "--domain", "x", "--run", trained.run, "-o", "x.h5")
    base = ("retrieve", "x.h5", "--index", trained.run / "gallery.h5")
    names = ("sklearn", "torch", "auto", *(["faiss"] if find_spec("faiss") else []))
    answers = [iiae(*base, "--backend", name) for name in names]
    assert len({answer.out for answer in answers}) == 1 and answers[0].out.count("\n") == 1500
    assert "by size: 300 queries × 300 entries" in answers[2].err
    cosine = iiae(*base, "--metric", "cosine", "--k", "1")
    assert all(0 <= float(line.split("\t")[3]) <= 2 for line in cosine.out.splitlines())


def test_what_encoding_skipped_is_no_query_of_the_cache(iiae, trained, query):
    Path("bad.png").write_text("no picture")
    base = ("encode", query, "bad.png", "--domain", "x", "--run", trained.run, "-o", "x.h5")
    assert iiae(*base).code == 3
    found = iiae("retrieve", "x.h5", "--index", trained.run / "gallery.h5", "--json")
    assert found.code == 0 and len(found.json["results"]) == 1 and found.json["skipped"] == []


def test_the_only_cache_here_of_this_model_and_another_domain_is_the_default_gallery(
    iiae, trained, query
):
    def chosen(*arguments):
        return iiae("retrieve", *arguments, "--run", trained.run).err

    for domain in ("x", "y"):
        iiae("encode", trained.data, "--domain", domain, "--run", trained.run, "-o", f"{domain}.h5")
    assert "gallery y.h5" in chosen(query, "--domain", "x")
    assert "gallery y.h5" in chosen("x.h5") and "of domain x (as stored)" in chosen("x.h5")
    assert "gallery y.h5" in chosen(query)
    Path("y.h5").unlink()
    assert f"gallery {trained.run / 'gallery.h5'}" in chosen(query, "--domain", "x")
    assert f"gallery {trained.run / 'gallery.h5'}" in chosen(query)  # x.h5 would turn it into y
    assert "gallery x.h5" in chosen(query, "--domain", "y")
    assert "of domain y (the other one" in chosen(query, "--index", "x.h5")
    with h5py.File("x.h5", "a") as file:
        file.attrs["fingerprint"] = "0" * 16
    assert f"gallery {trained.run / 'gallery.h5'}" in chosen(query)
    error, hint = iiae("retrieve", "x.h5", "--domain", "y").error()
    assert "latents of x" in error and "--domain" in hint


@pytest.mark.parametrize(("separator", "flags"), [("\n", []), ("\r\n", []), ("\0", ["-0"])])
def test_paths_come_from_standard_input(iiae, trained, monkeypatch, separator, flags):
    def retrieve(*names):
        listing = separator.join(names).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listing)))
        return iiae("retrieve", "-", *flags, "--run", trained.run, "--k", "1")

    files = [str(path) for path in sorted((trained.pictures / "test" / "x").glob("*.png"))[:3]]
    assert [line.split("\t")[0] for line in retrieve(*files).out.splitlines()] == files
    outcome = retrieve("b.png", "c.png")
    said = outcome.error()[0]
    assert outcome.code == 2 and "none of the inputs could be read: b.png: does not exist" in said
    assert "skipped c.png: does not exist" in outcome.err


def framed(path):
    """The numbers of pixels in green, and in red or amber."""
    pixels = picture(path).reshape(-1, 3)
    green, *others = ((pixels == tone).all(axis=1).sum() for tone in FRAMES.values())
    return green > 0, sum(others) > 0


def test_a_montage_frames_the_partner_and_others_where_classes_are_known(iiae, trained, query):
    base = ("--run", trained.run, "--montage")
    iiae("retrieve", query, *base, "all.png", "--k", "100")
    assert framed("all.png") == (True, False)
    iiae("retrieve", trained.data, *base, "file.png", "--k", "2")
    assert framed("file.png") == (True, True)
    with h5py.File(trained.data) as file:
        label = file["test/x_labels"].asstr()[0]
    for folder, known in ((label, True), ("elsewhere", False)):  # a class of the gallery, and none
        Path(folder).mkdir()
        stranger = Path(folder, "stranger.png")
        stranger.write_bytes(query.read_bytes())
        iiae("retrieve", stranger, *base, f"{folder}.png", "--k", "2")
        assert any(framed(f"{folder}.png")) == known
    iiae("retrieve", stranger, *base, "stranger.jpg")
    assert Image.open("stranger.jpg").format == "JPEG"


# ---- translate


def test_translate_writes_files_and_a_grid_and_repeats_itself(iiae, trained, query):
    base = ("translate", query, "--from", "x", "--run", trained.run, "--samples", "2", "--json")
    files = outputs(iiae(*base, "-o", "out", "--grid", "grid.png").json)
    assert files == ["out/00001-to-y-sample1.png", "out/00001-to-y-sample2.png"]
    first, second = map(picture, files)
    assert first.shape == (32, 32, 3) and (first != second).any()
    assert Image.open("grid.png").width > 3 * 96
    assert (picture(outputs(iiae(*base, "-o", "again").json)[0]) == first).all()
    other = outputs(iiae(*base, "-o", "other", "--seed", "1").json)[0]
    assert (picture(other) != first).any()
    refused = iiae(*base, "-o", "out")
    assert refused.code == 2 and "--overwrite" in refused.error()[1]


def test_guided_translation_takes_the_references_colour(iiae, trained, query):
    with h5py.File(trained.data) as file:
        colours = file["test/factors/y_color"][()].astype(float)
    rows = (np.argmax(colours[:, 0] - colours[:, 2]), np.argmax(colours[:, 2] - colours[:, 0]))
    red, blue = (trained.pictures / "test" / "y" / f"{row + 1:05d}.png" for row in rows)
    base = ("--run", trained.run, "--json", "-o")
    both = ("--reference", red, "--reference", blue)
    made = outputs(iiae("translate", query, "--from", "x", *base, "out", *both).json)
    reddish, bluish = (picture(path).mean(axis=(0, 1)) for path in made)
    assert reddish[0] > reddish[2] and bluish[2] > bluish[0]
    analogy = iiae("translate", red, "--from", "y", "--to", "y", *base, "a", "--reference", blue)
    turned = picture(outputs(analogy.json)[0]).mean(axis=(0, 1))
    assert turned[2] > turned[0]


@pytest.mark.parametrize(
    ("arguments", "says", "mends"),
    [
        (("PICTURE", "--guided"), "partners", "--reference"),
        (("DATA", "--guided", "--to", "x", "--reference", "PICTURE"), "--guided", "leave --to out"),
    ],
)
def test_what_cannot_be_translated_is_refused(iiae, trained, query, arguments, says, mends):
    named = {"PICTURE": query, "DATA": trained.data}
    given = [named.get(argument, argument) for argument in arguments]
    error, hint = iiae("translate", *given, "--from", "x", "--run", trained.run, "-o", "o").error()
    assert says in error and mends in hint and not Path("o").exists()


def test_samples_references_and_partners_stand_side_by_side(iiae, trained):
    partner = trained.pictures / "test" / "y" / "00002.png"
    base = ("translate", trained.data, "--from", "x", "--run", trained.run, "--limit", "2")
    more = ("--samples", "1", "--reference", partner, "--guided", "--grid", "both.png")
    both = iiae(*base, "--json", "-o", "both", *more).json
    assert [item["input"] for item in both["results"]] == ["test/00001", "test/00002"]
    names = [output["exclusive"] for output in both["results"][1]["outputs"]]
    assert names == ["sample 1", "00002.png", "guided"]
    # The reference is the second row's partner, so both guide to the same picture there only.
    other, own = (
        abs(picture(reference) - picture(guided))
        for _, reference, guided in (outputs(both, row) for row in (0, 1))
    )
    assert own.max() <= 1 and other.mean() > 3
    assert Image.open("both.png").width > 4 * 96


def test_a_folder_is_translated_but_for_what_cannot_be_read(iiae, trained):
    for part in ("a", "b"):
        Path("in", part).mkdir(parents=True)
        for path in sorted((trained.pictures / "test" / "x").iterdir())[:17]:
            Path("in", part, path.name).write_bytes(path.read_bytes())
    Path("in/a/00002.png").write_text("no picture")
    base = ("translate", "in", "--from", "x", "--run", trained.run, "--samples", "2", "--json")
    outcome = iiae(*base, "-o", "out", "--grid", "grid.png")
    assert outcome.code == 3 and "first 32 of 34" in outcome.err
    assert len(outcome.json["skipped"]) == 1 and "in/a/00002.png" in outcome.json["skipped"][0]
    assert len(outcome.json["results"]) == 33 and len(list(Path("out").iterdir())) == 66
    assert "out/00001-to-y-sample1-2.png" in outputs(outcome.json, 16)  # a name that recurs
    alone = iiae(*base, "--grid", "alone.png")
    assert len(alone.json["results"]) == 31  # of the first 32
    assert "no others are translated" in alone.err and "no others" not in outcome.err


def test_nothing_is_written_if_one_file_exists_or_nothing_is_readable(iiae, trained):
    base = ("--from", "x", "--run", trained.run, "-o", "out")
    Path("bad.png").write_text("no picture")
    outcome = iiae("translate", "bad.png", *base)
    assert "none of the inputs could be read: bad.png" in outcome.error()[0]
    assert not list(Path("out").iterdir())
    Path("out/00300-to-y-sample3.png").write_text("mine")
    outcome = iiae("translate", trained.pictures / "test" / "x", *base)
    assert "00300-to-y-sample3.png already exists" in outcome.error()[0]
    assert [path.name for path in Path("out").iterdir()] == ["00300-to-y-sample3.png"]


def test_defaults_make_the_short_forms_work(iiae, trained, query):
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(trained.run)
    assert iiae("evaluate").code == 0
    assert iiae("encode", trained.pictures / "test" / "y", "--domain", "y", "-o", "z.h5").code == 0
    assert iiae("retrieve", query, "--k", "5").out.count("\n") == 5
