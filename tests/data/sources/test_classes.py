"""Your own classes: layouts, unseen classes, leaks, resuming, and what the data file says; the program end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from class_sources import NETWORK, class_folders, feature_arrays, make_quick, save_arrays
from helpers import Program, StopAt, built

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.data.blocks import partial_of
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.leaks import class_list_hash
from iiae_cli.data.sources import extraction
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import prepare_file

RANDOM = {"backbone": NETWORK, "backbone_weights": "none"}


def options(source, **features):
    return PrepareOptions(source=source, **features)


def refusal(*arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        built("classes", options(*arguments, **keywords))
    assert caught.value.hint
    return caught.value


def told(prepared, name):
    return json.loads(prepared.attributes[name])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture
def divided(tmp_path):
    """Seen ant, bee and unseen cow; x and y of different lengths."""
    source = tmp_path / "mine"
    class_folders(source / "train" / "x", {"ant": 4, "bee": 3})
    class_folders(source / "train" / "y", {"ant": 5, "bee": 2})
    class_folders(source / "test" / "x", {"cow": 2})
    class_folders(source / "test" / "y", {"cow": 3})
    return source


# ---- layouts


def test_divided_pictures_become_features(divided):
    prepared = built("classes", options(divided, **RANDOM))
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert (train.x.rows.shape, train.y.rows.shape) == (
        (7, 1024),
        (7, 1024),
    ) and train.x.rows.dtype == np.float32
    assert (test.x.rows.shape, test.y.rows.shape) == ((2, 1024), (3, 1024)) and train.pairs is None
    assert train.x.labels == ["ant"] * 4 + ["bee"] * 3 and test.y.labels == ["cow"] * 3
    assert train.x.ids[4] == "train/x/bee/0.png"
    attributes = prepared.attributes
    assert attributes["alignment"] == "class" and attributes["split_name"] == "given"
    assert told(prepared, "test_classes") == ["cow"] and told(prepared, "train_classes") == [
        "ant",
        "bee",
    ]
    assert (
        attributes["test_classes_sha256"] == class_list_hash(["cow"])
        and told(prepared, "leak") == []
    )
    backbone = told(prepared, "backbone")
    assert (backbone["name"], backbone["weights"], backbone["width"]) == (NETWORK, "random", 1024)
    assert set(backbone["versions"]) == {"torch", "torchvision"}
    assert backbone["fine_tuning"] is None and backbone["classes_seen"] == []
    assert (
        backbone["preprocessing"]["normalise"] is True
        and backbone["preprocessing"]["invert_sketches"] is False
    )


def test_undivided_pictures_are_divided_by_number_or_file(tmp_path):
    for domain in "xy":
        class_folders(tmp_path / domain, dict.fromkeys(("ant", "bee", "cow", "dog"), 2))
    (tmp_path / "unseen.txt").write_text("dog\nant\n")
    prepared = built(
        "classes", options(tmp_path, **RANDOM, unseen_classes=str(tmp_path / "unseen.txt"))
    )
    assert (
        told(prepared, "test_classes") == ["ant", "dog"]
        and prepared.attributes["split_name"] == "given"
    )
    assert sorted(set(prepared.splits["train"].y.labels)) == ["bee", "cow"]
    drawn = built("classes", options(tmp_path, **RANDOM, unseen_classes="1"))
    assert (
        drawn.attributes["split_name"] == "unseen-1-seed0" and len(told(drawn, "test_classes")) == 1
    )
    assert "--unseen-classes 10" in refusal(tmp_path, **RANDOM).hint


def test_a_valid_split_by_either_name(divided):
    for domain in "xy":
        class_folders(divided / "val" / domain, {"bee": 1})
    assert built("classes", options(divided, **RANDOM)).splits["valid"].x.labels == ["bee"]


def test_classes_of_one_domain_and_unreadable_pictures_are_named_and_left_out(divided):
    class_folders(divided / "train" / "x", {"elk": 2})
    class_folders(divided / "test" / "y", {"fox": 1})
    (divided / "train" / "y" / "ant" / "0.png").write_bytes(b"broken")
    class_folders(divided / "train" / "x", {"gnu": 1})
    (broken,) = class_folders(divided / "train" / "y", {"gnu": 1})
    broken.write_bytes(b"broken")
    prepared = built("classes", options(divided, **RANDOM))
    assert [line.split(":")[0] for line in prepared.skipped] == [
        f"class elk of {divided / 'train'}",
        f"class fox of {divided / 'test'}",
        str(divided / "train" / "y" / "ant" / "0.png"),
        str(broken),
        "class gnu of train",
    ]
    train = prepared.splits["train"]
    assert told(prepared, "train_classes") == ["ant", "bee"] and (len(train.x), len(train.y)) == (
        7,
        6,
    )
    assert "train/y/ant/0.png" not in train.y.ids and set(train.x.labels) == {"ant", "bee"}


def test_a_limit_leaves_every_class_some(divided):
    prepared = built("classes", options(divided, limit=3, **RANDOM))
    train = prepared.splits["train"]
    assert train.x.ids == ["train/x/ant/0.png", "train/x/ant/1.png", "train/x/bee/0.png"]
    assert train.y.labels == ["ant", "ant", "bee"] and len(prepared.splits["test"].y) == 3
    assert "--limit 1 is fewer than the 2 classes" in refusal(divided, limit=1, **RANDOM).message


def test_other_layouts_are_refused_with_a_way_out(tmp_path, divided):
    assert (
        "prepare classes" in refusal(divided).hint
        and "--backbone resnet18" in refusal(divided).hint
    )
    assert "does not exist" in refusal(tmp_path / "none").message
    assert "--unseen-classes out" in refusal(divided, unseen_classes="1", **RANDOM).hint
    assert "Sketchy" in refusal(divided, class_split="sake-25").message
    (tmp_path / "empty").mkdir()
    assert "holds no class with pictures" in refusal(tmp_path / "empty", **RANDOM).message
    (tmp_path / "file.txt").write_text("")
    assert "neither a folder nor" in refusal(tmp_path / "file.txt", **RANDOM).message
    (divided / "train").rename(divided / "valid")
    assert "no folder train/" in refusal(divided, **RANDOM).message
    class_folders(tmp_path / "apart" / "x", {"ant": 1})
    class_folders(tmp_path / "apart" / "y", {"bee": 1})
    assert "no class that both" in refusal(tmp_path / "apart", **RANDOM).message


def test_feature_options_are_refused_elsewhere():
    with pytest.raises(IiaeError, match="digits-cdcb takes no --split"):
        built("digits-cdcb", options(None, unseen_classes="3"))


# ---- features as given


def test_given_features_are_taken_as_they_are(tmp_path):
    arrays = feature_arrays({"train": ["ant", "bee"], "test": ["cow"]})
    for source in (tmp_path, tmp_path / "split1"):
        save_arrays(source, arrays)
        prepared = built("classes", options(tmp_path))
        np.testing.assert_array_equal(
            prepared.splits["train"].x.rows, arrays["train_sketch_features"]
        )
        assert prepared.attributes["split_name"] == "given" and "leak" not in prepared.attributes
        backbone = told(prepared, "backbone")
        assert backbone["weights"] == "given" and backbone["classes_seen"] is None
        assert len(prepared.attributes["source_sha256"]) == 64
        for path in tmp_path.glob("*.npy"):
            path.unlink()
    assert "divided already" in refusal(tmp_path, unseen_classes="1").message
    assert "divided already" in refusal(tmp_path, backbone="vgg16").message


def test_a_class_that_one_domain_lacks_is_left_out_of_given_features(tmp_path):
    arrays = feature_arrays({"train": ["ant", "bee"], "test": ["cow", "dog"]})
    keep = ["/dog/" not in path for path in arrays["test_image_paths"]]
    arrays |= {
        name: values[keep] for name, values in arrays.items() if name.startswith("test_image")
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    for source in (tmp_path, tmp_path / "mine.npz"):
        prepared = built("classes", options(source))
        assert prepared.skipped == ["class dog of test: only in x, its 3 rows are left out"]
        assert told(prepared, "test_classes") == ["cow"] and set(
            prepared.splits["test"].x.labels
        ) == {"cow"}
        assert prepared.splits["test"].x.ids == [
            f"data/sketch/cow/{number}.png" for number in range(3)
        ]


def test_given_features_that_saw_a_test_class_are_refused(tmp_path):
    save_arrays(tmp_path, feature_arrays({"train": ["ant"], "test": ["cow", "dog"]}))
    (tmp_path / "classes_seen.txt").write_text("ant\ndog\n")
    assert "1 of the test classes: dog" in refusal(tmp_path).message
    assert told(built("classes", options(tmp_path, allow_leak=True)), "leak") == ["dog"]
    (tmp_path / "classes_seen.txt").write_text("ant\n")
    assert told(built("classes", options(tmp_path)), "leak") == []


# ---- fine-tuning and leaks


def test_fine_tuning_sees_training_pictures_alone(divided, tmp_path, monkeypatch):
    shown = {}
    original = extraction.fine_tune

    def spy(network, paths, labels, **keywords):
        shown[keywords["domain"]] = (list(paths), set(labels))
        return original(network, paths, labels, **keywords)

    monkeypatch.setattr(extraction, "fine_tune", spy)
    prepared = built(
        "classes", options(divided, **RANDOM, fine_tune_epochs=1, save_backbone=tmp_path / "kept")
    )
    assert {domain: classes for domain, (_, classes) in shown.items()} == {
        "x": {"ant", "bee"},
        "y": {"ant", "bee"},
    }
    assert all(
        divided / "train" / domain in path.parents for domain in "xy" for path in shown[domain][0]
    )
    backbone = told(prepared, "backbone")
    assert backbone["classes_seen"] == ["ant", "bee"] and told(prepared, "leak") == []
    assert backbone["fine_tuning"]["epochs"] == 1 and set(backbone["fine_tuning"]["accuracy"]) == {
        "x",
        "y",
    }
    assert backbone["width"] == 512 and prepared.splits["test"].y.rows.shape == (3, 512)
    assert (prepared.splits["train"].x.rows < 0).any()

    # The kept networks give the same features, and are refused where a class that they saw is a test class.
    again = built("classes", options(divided, backbone_weights=str(tmp_path / "kept")))
    np.testing.assert_array_equal(again.splits["test"].x.rows, prepared.splits["test"].x.rows)
    assert told(again, "backbone")["classes_seen"] == ["ant", "bee"]
    assert told(again, "backbone")["fine_tuning"]["accuracy"] == backbone["fine_tuning"]["accuracy"]
    for domain in "xy":
        (divided / "test" / domain / "cow").rename(divided / "test" / domain / "bee")
    leaking = {"backbone_weights": str(tmp_path / "kept")}
    error = refusal(divided, **leaking)
    assert "1 of the test classes: bee" in error.message and "--allow-leak" in error.hint
    assert told(built("classes", options(divided, **leaking, allow_leak=True)), "leak") == ["bee"]
    # Fine-tuning on a class that is tested too is a leak as well.
    assert "1 of the test classes: bee" in refusal(divided, **RANDOM, fine_tune_epochs=1).message


def test_kept_networks_exclude_other_options(divided, tmp_path):
    built(
        "classes", options(divided, **RANDOM, fine_tune_epochs=1, save_backbone=tmp_path / "kept")
    )
    kept = {"backbone_weights": str(tmp_path / "kept")}
    assert "leave --backbone out" in refusal(divided, **kept, backbone="vgg16").hint
    assert "fine-tuned already" in refusal(divided, **kept, fine_tune_epochs=2).message
    assert "nothing to save" in refusal(divided, **RANDOM, save_backbone=tmp_path / "more").message
    file = tmp_path / "kept" / "x.safetensors"
    assert (
        "one domain alone" in refusal(divided, backbone=NETWORK, backbone_weights=str(file)).message
    )


def test_switches_reach_the_pictures_and_are_recorded(divided, tmp_path, capsys):
    plain = built("classes", options(divided, **RANDOM))
    inverted = built("classes", options(divided, **RANDOM, invert_sketches=True))
    raw = built("classes", options(divided, **RANDOM, normalise=False))
    assert told(inverted, "backbone")["preprocessing"]["invert_sketches"] is True
    assert told(raw, "backbone")["preprocessing"]["normalise"] is False
    assert not np.allclose(plain.splits["test"].x.rows, inverted.splits["test"].x.rows)
    np.testing.assert_array_equal(plain.splits["test"].y.rows, inverted.splits["test"].y.rows)
    assert not np.allclose(plain.splits["test"].y.rows, raw.splits["test"].y.rows)
    tuned = {"fine_tune_epochs": 1, "save_backbone": tmp_path / "kept", "invert_sketches": True}
    built("classes", options(divided, **RANDOM, **tuned))
    kept = {"backbone_weights": str(tmp_path / "kept")}
    assert (
        told(built("classes", options(divided, **kept)), "backbone")["preprocessing"][
            "invert_sketches"
        ]
        is True
    )
    capsys.readouterr()
    other = told(built("classes", options(divided, **kept, invert_sketches=False)), "backbone")
    assert "prepared in another way" in capsys.readouterr().err
    assert other["preprocessing"]["invert_sketches"] is False
    assert other["fine_tuning"]["preprocessing"]["invert_sketches"] is True


# ---- interruption


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_preparation_ends_in_equal_values(
    divided, tmp_path, monkeypatch, capsys, epochs, stop_at
):
    features = {**RANDOM, "fine_tune_epochs": epochs, "batch_size": 2}

    def prepare(name, normalise=None, **more):
        path = tmp_path / name
        prepare_file(
            "classes", path, options(divided, **features, normalise=normalise), command="", **more
        )
        return DataFile(path)

    whole = prepare("whole.h5")
    work = partial_of(tmp_path / "part.h5")

    def interrupt(**more):
        with pytest.raises(Interrupted):
            prepare("part.h5", stop=StopAt(stop_at), **more)
        assert work.is_dir() and not (tmp_path / "part.h5").exists()

    interrupt(normalise=False)
    with pytest.raises(IiaeError, match="holds interrupted work") as caught:
        prepare("part.h5")
    assert "--resume" in caught.value.hint
    interrupt(resume=True)
    assert "was begun with another normalise, readings: starting afresh" in capsys.readouterr().err
    computed = []
    features_of = extraction._features
    monkeypatch.setattr(
        extraction, "_features", lambda *arguments: computed.append(1) or features_of(*arguments)
    )
    resumed = prepare("part.h5", resume=True)
    assert len(computed) == (11 - stop_at if epochs == 0 else 11)
    assert not work.exists() and not partial_of(tmp_path / "whole.h5").exists()
    for name in ("train", "test"):
        for domain in "xy":
            np.testing.assert_array_equal(
                resumed.split(name).side(domain).rows, whole.split(name).side(domain).rows
            )
            assert resumed.split(name).side(domain).ids == whole.split(name).side(domain).ids
    assert resumed.info.attributes == whole.info.attributes


# ---- the program


def test_the_program_shows_both_domains(iiae: Program, divided: Path):
    command = (
        "prepare",
        "classes",
        divided,
        "--backbone",
        NETWORK,
        "--backbone-weights",
        "none",
        "--device",
        "cpu",
    )
    outcome = iiae(*command, "-o", "mine.h5", "--json")
    assert outcome.code == 0 and "random weights" in outcome.err
    assert outcome.json["splits"] == {"train": 7, "valid": 0, "test": 2}
    assert outcome.json["rows"] == {
        "train": {"x": 7, "y": 7, "classes": 2},
        "valid": {"x": 0, "y": 0, "classes": 0},
        "test": {"x": 2, "y": 3, "classes": 1},
    }
    file = DataFile(Path("mine.h5"))
    assert file.info.is_features and file.info.attributes["alignment"] == "class"
    assert (
        len(file.split("test").x) == 2
        and len(file.split("test").y) == 3
        and len(file.split("valid").y) == 0
    )
    outcome = iiae(*command, "-o", "mine.h5", "--overwrite")
    assert outcome.out == "split\tx\ty\tclasses\ntrain\t7\t7\t2\nvalid\t0\t0\t0\ntest\t2\t3\t1\n"
    assert "--pictures" in iiae(*command, "-o", "more.h5", "--pictures", "p").error()[0]
    assert "--image-size" in iiae(*command, "-o", "more.h5", "--image-size", 32).error()[0]


def test_a_signal_leaves_work_that_resume_takes_up(
    iiae: Program, divided: Path, monkeypatch: pytest.MonkeyPatch
):
    import os
    import signal

    compute = extraction._features

    def stop(network, inputs, paths):
        if "/y/" in str(paths[0]):
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(network, inputs, paths)

    command = (
        "prepare",
        "classes",
        divided,
        "--backbone",
        NETWORK,
        "--backbone-weights",
        "none",
        "-o",
        "mine.h5",
    )
    command += ("--batch-size", 2)
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_features", stop)
        outcome = iiae(*command)
    assert outcome.code == 75 and "--resume" in outcome.err and not Path("mine.h5").exists()
    assert Path("mine.h5.partial/blocks").stat().st_size
    assert "--resume" in iiae(*command).error()[1]
    assert iiae(*command, "--resume").code == 0
    assert Path("mine.h5").exists() and not Path("mine.h5.partial").exists()
    before = Path("mine.h5").stat()
    outcome = iiae(*command, "--resume")
    assert (
        outcome.code == 0 and "complete already" in outcome.err and Path("mine.h5").stat() == before
    )
    outcome = iiae(*command, "--resume", "--no-normalise")
    assert (
        outcome.code == 2
        and "other options" in outcome.error()[0]
        and "--overwrite" in outcome.error()[1]
    )
    assert iiae(*command, "--overwrite").code == 0
