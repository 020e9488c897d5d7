"""The six commands on a small trained run, as users and scripts call them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import Program, Trained
from PIL import Image


@pytest.fixture
def query(trained: Trained) -> Path:
    return trained.pictures / "test" / "x" / "00001.png"


def test_a_run_directory_holds_what_the_contract_lists(trained: Trained) -> None:
    names = {path.name for path in trained.run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "checkpoints",
        "gallery.h5",
        "samples",
        "run.json",
    }
    info = json.loads((trained.run / "run.json").read_text())
    assert info["state"] == "finished" and info["steps"] == 150
    assert set(info) >= {"versions", "git", "host", "command", "seconds"}
    metrics = [
        json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()
    ]
    train = [line for line in metrics if line["kind"] == "train"]
    assert [line["step"] for line in train] == [50, 100, 150]
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert {"reconstruction_x", "kl_exclusive_y", "kl_shared_x", "annealing", "lr"} <= set(train[0])
    assert [line["step"] for line in metrics if line["kind"] == "validation"] == [150]
    assert list(trained.run.glob("tensorboard/events*"))


def test_evaluate_finds_shared_high_exclusive_at_chance_and_the_known_baseline(
    iiae: Program, trained: Trained
) -> None:
    outcome = iiae("evaluate", "--run", trained.run, "--task", "all", "--probe-rows", 200, "--json")
    figures = outcome.json
    for way in ("x_to_y", "y_to_x"):
        shared = figures["retrieval"]["shared"][way]
        assert shared["n"] == 300
        assert shared["recall@1"] > 0.75
        assert (
            figures["retrieval"]["baseline"][way]["recall@1"] == 1.0
        )  # bilevel digits: pixels solve them
        assert shared["recall@1"] <= shared["recall@5"] <= shared["recall@10"]
        assert figures["retrieval"]["exclusive"][way]["recall@1"] < 0.03
        assert 0 < figures["translation"][way]["l1"] < 0.25
    for factor in ("x_color", "y_color"):
        assert figures["disentanglement"]["factors"][factor]["exclusive_mean"]["r2"] > 0.8
    assert figures["protocol"]["split"] == "test"


def test_evaluate_in_a_pipe_is_tab_separated(iiae: Program, trained: Trained) -> None:
    lines = [line.split("\t") for line in iiae("evaluate", "--run", trained.run).out.splitlines()]
    assert lines[0] == [
        "latent",
        "direction",
        "recall@1",
        "recall@5",
        "recall@10",
        "median_rank",
        "n",
    ]
    assert [line[:2] for line in lines[1:]] == [
        [kind, way] for kind in ("shared", "exclusive", "baseline") for way in ("x_to_y", "y_to_x")
    ]


def test_fail_under_is_a_gate(iiae: Program, trained: Trained) -> None:
    gate = "retrieval.shared.x_to_y.recall@1"
    assert iiae("evaluate", "--run", trained.run, "--fail-under", f"{gate}=0.5").code == 0
    outcome = iiae("evaluate", "--run", trained.run, "--fail-under", f"{gate}=1.01", "--json")
    assert outcome.code == 2 and gate in outcome.error()[0]
    assert outcome.json["failures"]
    outcome = iiae("evaluate", "--run", trained.run, "--fail-under", "recall=1")
    assert outcome.code == 2 and gate in outcome.error()[1]


def test_encode_pictures_equals_encoding_the_prepared_file(iiae: Program, trained: Trained) -> None:
    folder = trained.pictures / "test" / "y"
    outcome = iiae(
        "encode", folder, "--domain", "y", "--run", trained.run, "-o", "z.h5", "--logvar", "--json"
    )
    assert outcome.json == {
        **outcome.json,
        "schema": "iiae.encode/1",
        "rows": 300,
        "domain": "y",
        "skipped": [],
    }
    iiae(
        "encode",
        trained.data,
        "--domain",
        "y",
        "--run",
        trained.run,
        "-o",
        "h.h5",
        "--split",
        "test",
    )
    with h5py.File("z.h5") as pictures, h5py.File("h.h5") as prepared:
        assert pictures["shared/mean"].shape == (300, 512)
        assert pictures["exclusive/logvar"].shape == (300, 8)
        assert "logvar" not in prepared["shared"]
        np.testing.assert_allclose(
            pictures["shared/mean"][()], prepared["shared/mean"][()], atol=1e-5
        )
        names = [Path(name).stem for name in pictures["ids"].asstr()[()]]
        assert names == [name.split("/")[1] for name in prepared["ids"].asstr()[()]]
        assert set(prepared["labels"].asstr()[()]) == set("0123456789")
        assert pictures.attrs["domain"] == "y" and tuple(pictures.attrs["shared_shape"]) == (
            32,
            4,
            4,
        )
        assert pictures.attrs["fingerprint"] == prepared.attrs["fingerprint"]


def test_encoded_shards_merge_to_the_whole(iiae: Program, trained: Trained) -> None:
    base = ("encode", trained.data, "--domain", "x", "--run", trained.run)
    iiae(*base, "-o", "whole.h5")
    for index in range(3):
        assert iiae(*base, "--shard", f"{index}/3", "-o", f"part{index}.h5").code == 0
    assert (
        iiae("encode", "part0.h5", "part1.h5", "part2.h5", "--merge", "-o", "merged.h5").code == 0
    )
    with h5py.File("whole.h5") as whole, h5py.File("merged.h5") as merged:
        np.testing.assert_allclose(whole["shared/mean"][()], merged["shared/mean"][()], atol=1e-5)
        assert list(whole["ids"]) == list(merged["ids"])
    doubled = iiae("encode", "part0.h5", "part0.h5", "--merge", "-o", "twice.h5")
    assert doubled.code == 2 and not Path("twice.h5").exists()


def test_encode_chooses_latents_and_format(iiae: Program, trained: Trained) -> None:
    base = ("encode", trained.data, "--domain", "x", "--run", trained.run)
    iiae(*base, "-o", "s.h5", "--latents", "shared", "--dtype", "float16")
    with h5py.File("s.h5") as file:
        assert "exclusive" not in file and file["shared/mean"].dtype == np.float16
    refused = iiae(*base, "-o", "s.h5")
    assert refused.code == 2 and "--overwrite" in refused.error()[1]


def test_retrieve_from_the_runs_gallery(iiae: Program, trained: Trained, query: Path) -> None:
    outcome = iiae("retrieve", query, "--run", trained.run, "--k", "3")
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert [row[1] for row in rows] == ["1", "2", "3"]
    assert {row[0] for row in rows} == {str(query)}
    distances = [float(row[3]) for row in rows]
    assert distances == sorted(distances) and len(rows[0]) == 5
    found = iiae("retrieve", trained.data, "--run", trained.run, "--k", "1", "--json").json
    assert found["schema"] == "iiae.retrieve/1"
    hits = [one["query"] == one["neighbours"][0]["id"] for one in found["results"]]
    expected = iiae("evaluate", "--run", trained.run, "--json").json["retrieval"]["shared"][
        "x_to_y"
    ]["recall@1"]
    assert np.mean(hits) == pytest.approx(expected)


def test_retrieve_reads_queries_from_a_cache_and_all_backends_agree(
    iiae: Program, trained: Trained
) -> None:
    iiae("encode", trained.data, "--domain", "x", "--run", trained.run, "-o", "x.h5")
    index = trained.run / "gallery.h5"
    names = ("sklearn", "torch", *(["faiss"] if find_spec("faiss") else []))
    answers = [iiae("retrieve", "x.h5", "--index", index, "--backend", name).out for name in names]
    assert len(set(answers)) == 1 and answers[0].count("\n") == 1500
    chosen = iiae("retrieve", "x.h5", "--index", index)
    assert (
        chosen.out == answers[0]
        and "backend " in chosen.err
        and "by size: 300 × 300 × " in chosen.err
    )
    cosine = iiae("retrieve", "x.h5", "--index", index, "--metric", "cosine", "--k", "1")
    assert all(0 <= float(line.split("\t")[3]) <= 2 for line in cosine.out.splitlines())


@pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
def test_an_approximate_search_keeps_its_index_and_tells_its_recall(
    iiae: Program, trained: Trained
) -> None:
    for domain in ("x", "y"):
        iiae("encode", trained.data, "--domain", domain, "--run", trained.run, "-o", f"{domain}.h5")
    exact = iiae("retrieve", "x.h5", "--index", "y.h5", "--json").json
    assert exact["backend"] in ("sklearn", "torch") and exact["approximate"] is None
    first = iiae("retrieve", "x.h5", "--index", "y.h5", "--approximate", "--json")
    told = first.json["approximate"]
    assert told["index"] == "y.faiss" and told["recall"] >= 0.95 and told["sample"] == 100
    assert (
        "index y.faiss made" in first.err
        and f"recall@5 {told['recall']:.3f} on 100 of 300 queries" in first.err
    )
    again = iiae("retrieve", "x.h5", "--index", "y.h5", "--approximate", "--json")
    assert "index y.faiss read" in again.err and again.json["results"] == first.json["results"]
    iiae("retrieve", "x.h5", "--index", "y.h5", "--approximate", "--latents", "exclusive")
    assert Path("y.exclusive.faiss").exists()


def test_approximate_is_faiss_own(
    iiae: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = trained.run / "gallery.h5"
    refused = iiae("retrieve", index, "--index", index, "--approximate", "--backend", "torch")
    assert refused.code == 2 and "not --backend torch" in refused.error()[0]
    monkeypatch.setitem(sys.modules, "faiss", None)
    for flags in (("--approximate",), ("--backend", "faiss")):
        missing = iiae("retrieve", index, "--index", index, *flags)
        assert missing.code == 2 and missing.error()[0] == "error: faiss is not installed"
        assert "pip install 'iiae-cli[faiss]'" in missing.error()[1]


def test_the_only_cache_here_is_the_default_gallery(
    iiae: Program, trained: Trained, query: Path
) -> None:
    iiae(
        "encode",
        trained.pictures / "test" / "y",
        "--domain",
        "y",
        "--run",
        trained.run,
        "-o",
        "mine.h5",
    )
    outcome = iiae("retrieve", query, "--run", trained.run)
    assert "mine.h5" in outcome.err and str(trained.pictures) in outcome.out


def test_a_gallery_of_other_weights_is_refused(
    iiae: Program, trained: Trained, query: Path
) -> None:
    iiae("encode", trained.data, "--domain", "y", "--run", trained.run, "-o", "z.h5")
    with h5py.File("z.h5", "a") as file:
        file.attrs["fingerprint"] = "0" * 16
    outcome = iiae("retrieve", query, "--run", trained.run, "--index", "z.h5")
    assert outcome.code == 2 and "000000" in outcome.error()[0]


def test_paths_come_from_standard_input(
    iiae: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((trained.pictures / "test" / "x").glob("*.png"))[:3]
    for separator, flags in (("\n", ()), ("\0", ("-0",))):
        text = separator.join(map(str, files)).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        outcome = iiae("retrieve", "-", *flags, "--run", trained.run, "--k", "1")
        assert [line.split("\t")[0] for line in outcome.out.splitlines()] == list(map(str, files))


def colours_of(path: str) -> tuple[int, int]:
    """Pixels in green and in red."""
    from iiae_cli.report.grids import RIGHT, WRONG

    pixels = np.asarray(Image.open(path)).reshape(-1, 3)
    greens, reds = (int((pixels == colour).all(axis=1).sum()) for colour in (RIGHT, WRONG))
    return greens, reds


def test_montage_frames_the_true_partner_green(
    iiae: Program, trained: Trained, query: Path
) -> None:
    from iiae_cli.report.grids import SWATCH

    outcome = iiae(
        "retrieve", query, "--run", trained.run, "--k", "300", "--json", "--montage", "all.png"
    )
    greens, reds = (count - SWATCH**2 for count in colours_of("all.png"))  # less the legend's
    assert greens > 0 and reds == 299 * greens
    assert outcome.json["montage"] == "all.png"


def test_montage_of_a_prepared_file_and_of_strangers(
    iiae: Program, trained: Trained, query: Path
) -> None:
    from iiae_cli.report.grids import SWATCH

    iiae("retrieve", trained.data, "--run", trained.run, "--k", "2", "--montage", "file.png")
    greens, reds = (count - SWATCH**2 for count in colours_of("file.png"))
    assert greens > 0 and reds > 0 and (greens + reds) % 64 == 0  # 32 queries, 2 neighbours
    Path("stranger.png").write_bytes(query.read_bytes())
    iiae(
        "retrieve",
        "stranger.png",
        "--run",
        trained.run,
        "--k",
        "2",
        "--montage",
        "stranger-hits.png",
    )
    assert colours_of("stranger-hits.png") == (0, 0)


def test_translate_writes_files_and_a_grid_and_repeats_itself(
    iiae: Program, trained: Trained, query: Path
) -> None:
    base = ("translate", query, "--from", "x", "--run", trained.run, "--samples", "2")
    outcome = iiae(*base, "-o", "out", "--grid", "grid.png", "--json")
    files = [one["file"] for one in outcome.json["results"][0]["outputs"]]
    assert files == ["out/00001-to-y-sample1.png", "out/00001-to-y-sample2.png"]
    first, second = (np.asarray(Image.open(path)) for path in files)
    assert first.shape == (32, 32, 3) and (first != second).any()
    assert Image.open("grid.png").width > 3 * 96
    iiae(*base, "-o", "again")
    assert Path("again/00001-to-y-sample1.png").read_bytes() == Path(files[0]).read_bytes()
    iiae(*base, "-o", "other", "--seed", "1")
    assert Path("other/00001-to-y-sample1.png").read_bytes() != Path(files[0]).read_bytes()
    refused = iiae(*base, "-o", "out")
    assert refused.code == 2 and "--overwrite" in refused.error()[1]


def test_guided_translation_takes_the_references_colour(
    iiae: Program, trained: Trained, query: Path
) -> None:
    with h5py.File(trained.data) as file:
        colours = file["test/factors/y_color"][()].astype(float)
    red = int(np.argmax(colours[:, 0] - colours[:, 1:].max(axis=1)))
    blue = int(np.argmax(colours[:, 2] - colours[:, :2].max(axis=1)))
    references = [trained.pictures / "test" / "y" / f"{row + 1:05d}.png" for row in (red, blue)]
    outcome = iiae(
        *("translate", query, "--from", "x", "--run", trained.run, "-o", "out", "--json"),
        *("--reference", references[0], "--reference", references[1], "--grid", "g.png"),
    )
    reddish, bluish = (
        np.asarray(Image.open(one["file"])).astype(float).mean(axis=(0, 1))
        for one in outcome.json["results"][0]["outputs"]
    )
    assert reddish[0] > reddish[2] and bluish[2] > bluish[0]
    analogy = iiae(
        *("translate", references[0], "--from", "y", "--to", "y", "--run", trained.run),
        *("--reference", references[1], "-o", "analogy", "--json"),
    )
    turned = (
        np.asarray(Image.open(analogy.json["results"][0]["outputs"][0]["file"]))
        .astype(float)
        .mean(axis=(0, 1))
    )
    assert turned[2] > turned[0]


def test_interpolation_goes_from_the_first_reference_to_the_second(
    iiae: Program, trained: Trained, query: Path
) -> None:
    first, last = (trained.pictures / "test" / "y" / f"{number:05d}.png" for number in (5, 9))
    base = ("translate", query, "--from", "x", "--run", trained.run)
    both = ("--reference", first, "--reference", last)
    outcome = iiae(*base, *both, "--interpolate", "4", "-o", "line", "--grid", "line.png", "--json")
    made = outcome.json["results"][0]["outputs"]
    assert [one["exclusive"] for one in made] == ["step 1", "step 2", "step 3", "step 4"]
    assert made[3]["file"] == "line/00001-to-y-step4.png" and Image.open("line.png").width > 5 * 96
    iiae(*base, *both, "-o", "ends")
    steps = [np.asarray(Image.open(one["file"])).astype(float) for one in made]
    ends = [
        np.asarray(Image.open(f"ends/00001-to-y-{one.stem}.png")).astype(float)
        for one in (first, last)
    ]
    assert abs(steps[0] - ends[0]).max() <= 1 and abs(steps[3] - ends[1]).max() <= 1
    far = [abs(step - ends[0]).mean() for step in steps]
    assert far == sorted(far) and far[3] > 2 * far[1] > 0


@pytest.mark.parametrize("given", [0, 1, 3])
def test_an_interpolation_has_two_ends(
    iiae: Program, trained: Trained, query: Path, given: int
) -> None:
    references = [
        part
        for _ in range(given)
        for part in ("--reference", trained.pictures / "test" / "y" / "00005.png")
    ]
    outcome = iiae(
        *(
            "translate",
            query,
            "--from",
            "x",
            "--run",
            trained.run,
            "-o",
            "out",
            "--interpolate",
            "3",
            *references,
        )
    )
    error, hint = outcome.error()
    assert (
        outcome.code == 2
        and "two references" in error
        and "--reference FIRST --reference LAST" in hint
    )
    assert not Path("out").exists()


def test_samples_and_guided_outputs_stand_side_by_side(iiae: Program, trained: Trained) -> None:
    partner = trained.pictures / "test" / "y" / "00002.png"
    base = (
        "translate",
        trained.data,
        "--from",
        "x",
        "--run",
        trained.run,
        "--limit",
        "3",
        "--json",
        "-o",
    )
    both = iiae(
        *base, "both", "--samples", "2", "--reference", partner, "--guided", "--grid", "both.png"
    ).json
    names = [one["exclusive"] for one in both["results"][1]["outputs"]]
    assert names == ["sample 1", "sample 2", "00002.png", "guided"]

    def picture(folder: str, row: int, name: str) -> np.ndarray:
        stem = Path(both["results"][row]["input"]).name
        return np.asarray(Image.open(f"{folder}/{stem}-to-y-{name}.png")).astype(float)

    iiae(*base, "sampled", "--samples", "2")
    assert (picture("both", 1, "sample2") == picture("sampled", 1, "sample2")).all()
    # The second row's partner is the reference, so both guide to the same picture; other rows have other partners.
    ids = [one["input"] for one in both["results"]]
    row = next(number for number, one in enumerate(ids) if Path(one).stem == "00002")
    assert abs(picture("both", row, "00002") - picture("both", row, "guided")).max() <= 1
    assert abs(picture("both", row - 1, "00002") - picture("both", row - 1, "guided")).mean() > 3
    assert Image.open("both.png").width > 5 * 96
    alone = iiae(*base, "alone", "--guided").json
    assert [one["exclusive"] for one in alone["results"][0]["outputs"]] == ["guided"]


def test_guided_translation_needs_partners(iiae: Program, trained: Trained, query: Path) -> None:
    base = ("--run", trained.run, "--guided", "-o", "out")
    error, hint = iiae("translate", query, "--from", "x", *base).error()
    assert "partners" in error and "--reference" in hint
    reference = ("--reference", query)
    error, hint = iiae(
        "translate", trained.data, "--from", "x", "--to", "x", *reference, *base
    ).error()
    assert "--guided" in error and hint == "hint: leave --to out"
    error, hint = iiae(
        "translate", trained.data, "--from", "x", *reference * 2, "--interpolate", 3, *base
    ).error()
    assert "interpolation" in error and "--guided" in hint
    assert not Path("out").exists()


def test_whole_folders_stream_and_blocks_change_nothing(
    iiae: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iiae_cli.cli import translate_run as translate

    for part in ("a", "b"):
        Path("in", part).mkdir(parents=True)
        for number in (1, 2, 3):
            Path("in", part, f"{number}.png").write_bytes(
                (trained.pictures / "test" / "x" / f"{number:05d}.png").read_bytes()
            )
    Path("in/a/2.png").write_text("no picture")
    base = (
        "translate",
        "in",
        "--from",
        "x",
        "--run",
        trained.run,
        "--samples",
        "2",
        "--json",
        "--grid",
    )
    sizes: list[int] = []
    original = translate.TrainedModel.translate

    def measured(trained, rows, *rest, **more):
        sizes.append(len(rows))
        return original(trained, rows, *rest, **more)

    monkeypatch.setattr(translate.TrainedModel, "translate", measured)
    whole = iiae(*base, "whole.png", "-o", "whole")
    monkeypatch.setattr(translate, "BLOCK_PICTURES", 4)
    parts = iiae(*base, "parts.png", "-o", "parts")
    assert sizes == [5, 1, 2, 2]
    assert whole.code == parts.code == 3 and len(parts.json["skipped"]) == 1
    names = sorted(path.name for path in Path("parts").iterdir())
    assert names == sorted(
        f"{stem}-to-y-sample{k}.png" for stem in ("1", "3", "1-2", "2-2", "3-2") for k in (1, 2)
    )
    inputs = [one["input"] for one in parts.json["results"]]
    assert inputs == ["in/a/1.png", "in/a/3.png", "in/b/1.png", "in/b/2.png", "in/b/3.png"]
    assert parts.json["results"][3]["outputs"][0]["file"] == "parts/2-2-to-y-sample1.png"
    for name in names:
        found, expected = (
            np.asarray(Image.open(Path(folder, name))).astype(int) for folder in ("parts", "whole")
        )
        np.testing.assert_allclose(found, expected, atol=1)
    assert Image.open("parts.png").size == Image.open("whole.png").size
    shutil.copy(trained.pictures / "test" / "x" / "00002.png", "in/a/2.png")
    monkeypatch.setattr(translate, "BLOCK_PICTURES", 256)
    mended = iiae(
        *base, "mended.png", "-o", "mended"
    )  # what could not be read changes no other input's samples
    assert mended.code == 0
    for name in names:
        found, expected = (
            np.asarray(Image.open(Path(folder, name))).astype(int) for folder in ("mended", "whole")
        )
        np.testing.assert_allclose(found, expected, atol=1)


def test_nothing_is_written_where_one_file_exists(iiae: Program, trained: Trained) -> None:
    Path("out").mkdir()
    Path("out/00300-to-y-sample3.png").write_text("mine")
    outcome = iiae(
        "translate",
        trained.pictures / "test" / "x",
        "--from",
        "x",
        "--run",
        trained.run,
        "-o",
        "out",
    )
    assert outcome.code == 2 and "00300-to-y-sample3.png exists" in outcome.error()[0]
    assert [path.name for path in Path("out").iterdir()] == ["00300-to-y-sample3.png"]


def test_a_grid_that_shows_some_inputs_leaves_none_out_of_the_results(
    iiae: Program, trained: Trained
) -> None:
    for picture in sorted((trained.pictures / "test" / "x").iterdir())[:34]:
        (Path("in") / picture.name).parent.mkdir(exist_ok=True)
        (Path("in") / picture.name).write_bytes(picture.read_bytes())
    Path("in/00034.png").write_text("no picture")
    outcome = iiae(
        "translate", "in", "--from", "x", "--run", trained.run, "--grid", "g.png", "--json"
    )
    assert outcome.code == 3 and "first 32 of 34" in outcome.err
    assert len(outcome.json["results"]) == 33 and "00034.png" in outcome.json["skipped"][0]


def test_nothing_readable_is_a_users_error(iiae: Program, trained: Trained) -> None:
    Path("bad.png").write_text("no picture")
    outcome = iiae("translate", "bad.png", "--from", "x", "--run", trained.run, "-o", "out")
    assert (
        outcome.code == 2
        and "none of the inputs" in outcome.error()[0]
        and "bad.png" in outcome.err
    )


def test_evaluate_lets_a_judge_read_translations(
    iiae: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iiae_cli.evaluation import judge

    monkeypatch.setattr(
        judge.train_judge,
        "__kwdefaults__",
        {**(judge.train_judge.__kwdefaults__ or {}), "steps": 60},
    )
    base = ("evaluate", "--run", trained.run, "--judge", "--lpips", "none")
    outcome = iiae(*base, "--task", "translation", "--samples", 2, "--json")
    found = outcome.json["judged"]["x_to_y"]
    assert (
        found["class"].keys() == {"real", "guided", "sampled", "n"}
        and 0.5 < found["class"]["real"] <= 1
    )
    assert found["y_color"].keys() == {
        "error_real",
        "error_guided",
        "spread_real",
        "spread_sampled",
        "n",
    }
    assert outcome.json["protocol"]["judge_seed"] == 0
    gated = iiae(
        *base,
        "--task",
        "translation",
        "--fail-under",
        "judged.x_to_y.y_color.error_guided=0.000001",
    )
    assert gated.code == 2 and "above" in gated.err and "x_to_y\tclass\t" in gated.out
    error, hint = iiae(*base, "--task", "retrieval").error()
    assert "--judge" in error and "--task translation" in hint


def test_translate_a_prepared_file_with_a_limit(iiae: Program, trained: Trained) -> None:
    outcome = iiae(
        "translate",
        trained.data,
        "--from",
        "y",
        "--run",
        trained.run,
        "--limit",
        "2",
        "--grid",
        "g.png",
        "--json",
    )
    assert [one["input"] for one in outcome.json["results"]] == ["test/00001", "test/00002"]


def test_defaults_make_the_short_forms_work(iiae: Program, trained: Trained, query: Path) -> None:
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(trained.run)
    assert iiae("evaluate").code == 0
    assert iiae("encode", trained.pictures / "test" / "y", "--domain", "y", "-o", "z.h5").code == 0
    assert iiae("retrieve", query, "--k", "5").out.count("\n") == 5
