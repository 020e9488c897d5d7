"""A data set in shards: merged, it is byte for byte what one call writes, whatever the set; strangers are refused."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from class_sources import NETWORK, class_folders, feature_arrays, make_quick, save_arrays
from helpers import StopAt
from PIL import Image
from test_cars import file_of, im_of, save_v5
from test_prepare import idx_source, side_by_side
from test_sketchy import ALL, archive

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.feature_options import FeatureOptions
from iiae_cli.data.parts import Part
from iiae_cli.data.sources import extraction, work
from iiae_cli.data.sources import registry as prepare
from iiae_cli.data.sources.part_files import read_part
from iiae_cli.data.sources.part_work import shares_of
from iiae_cli.data.sources.registry import PrepareOptions, prepare_file
from iiae_cli.data.sources.sharded import OUTPUT, is_part_of, plan_merge, prepare_part
from iiae_cli.data.workspace import partial_of

RANDOM = {"backbone": NETWORK, "backbone_weights": "none", "fine_tune_epochs": 0, "batch_size": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few items in a block, small pictures into the network."""
    make_quick(monkeypatch)
    monkeypatch.setattr(work, "BLOCK_ITEMS", 2)
    monkeypatch.setattr(prepare, "TRAIN_IDX", 5)
    monkeypatch.setattr(prepare, "embedded_digits", cache(prepare.embedded_digits))


def picture(path, seed, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def broken(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"broken")


# ---- a small source of every kind


def digits(folder):
    return None, {"limit": 5, "seed": 3}


def idx(folder):
    idx_source(folder)
    return folder, {}


def idx_enlarged(folder):
    idx_source(folder)
    return folder, {"image_size": 32, "seed": 1}


def halves(folder):
    for split, count in (("train", 7), ("val", 3), ("test", 2)):
        side_by_side(folder / split, range(1, count + 1))
    broken(folder / "train" / "00004.png")
    return folder, {"image_size": 16}


def cars(folder):
    for number in (2, 3, 7, 192):
        save_v5(file_of(folder, number), im_of(number))
    broken(file_of(folder, 5))
    return folder, {"image_size": 16}


def some_cars(folder):
    return cars(folder)[0], {"image_size": 16, "limit": 100}


def folders(folder):
    for number in range(11):
        for place, domain in enumerate("xy"):
            picture(folder / domain / f"{number}.png", 2 * number + place)
    broken(folder / "x" / "4.png")
    broken(folder / "y" / "9.png")
    picture(folder / "x" / "alone.png", 99)
    return folder, {"fractions": (0.2, 0.3), "seed": 5}


def table(folder):
    """Pictures that recur, some of them broken, so that rows are stored in another order than they are read in."""
    for number in range(6):
        picture(folder / "p" / f"{number}.png", number)
    for number in (2, 5):
        broken(folder / "p" / f"{number}.png")
    pairs = [(0, 2), (5, 1), (1, 3), (0, 1), (3, 4), (4, 0), (2, 3), (3, 1)]
    lines = [f"p/{x}.png,p/{y}.png,{'test' if y == 1 else 'train'},{x + y}" for x, y in pairs]
    (folder / "mine.csv").write_text("\n".join(["x,y,split,shared_sum", *lines]))
    return folder / "mine.csv", {}


def classes(folder):
    class_folders(folder / "train" / "x", {"ant": 5, "bee": 2})
    class_folders(folder / "train" / "y", {"ant": 3, "bee": 3, "elk": 1})
    class_folders(folder / "test" / "x", {"cow": 2, "dog": 1})
    class_folders(folder / "test" / "y", {"cow": 3, "dog": 1})
    broken(folder / "train" / "x" / "ant" / "1.png")
    broken(folder / "test" / "y" / "dog" / "0.png")  # leaves the class to x alone
    return folder, {"features": FeatureOptions(**RANDOM)}


def given(folder):
    return save_arrays(folder, feature_arrays({"train": ["ant", "bee"], "test": ["cow"]})), {}


def sketchy(folder):
    source = archive(folder, classes=[*ALL[:3], "bear", "cat"])
    (folder / "unseen.txt").write_text("bear\ncat\n")
    return source, {"features": FeatureOptions(**RANDOM, unseen_classes=str(folder / "unseen.txt"))}


KINDS = {
    "digits": ("digits-cdcb", digits),
    "outlines": ("digits-edge", digits),
    "mnist": ("mnist-cdcb", idx),
    "mnist-32": ("mnist-cdcb", idx_enlarged),
    "mnist-originals": ("mnist-cdcb", halves),
    "fashion": ("fashion-cdcb", idx_enlarged),
    "fashion-edges": ("fashion-edges", idx),
    "cars": ("cars", cars),
    "some-cars": ("cars", some_cars),
    "facades": ("facades", halves),
    "maps": ("maps", halves),
    "pairs": ("pairs", folders),
    "table": ("pairs", table),
    "classes": ("classes", classes),
    "given": ("classes", given),
    "sketchy": ("sketchy", sketchy),
}


def options_of(kind, folder, **more):
    """The set's name, and options with a source in the folder."""
    name, make = KINDS[kind]
    source, values = make(folder / "source")
    return name, PrepareOptions(**{"source": source, **values, **more})


def shard(folder, name, options, index, count, *, output=None, **more):
    path = folder / (output or f"{index}-of-{count}.h5")
    prepare_part(name, path, options, Part(index, count), command=["iiae", "-o", OUTPUT], **more)
    return path


def shards(folder, name, options, count):
    return [shard(folder, name, options, index, count) for index in range(count)]


# ---- equality


TWINS = ("outlines", "mnist-originals", "fashion", "maps")  # of kinds that are cut in more ways
# How many unreadable files each source has that shards say.
LOST = {
    "mnist-originals": 1,
    "facades": 1,
    "maps": 1,
    "cars": 1,
    "some-cars": 1,
    "pairs": 2,
    "table": 3,
    "classes": 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_shards_are_what_one_call_writes(tmp_path, kind):
    name, options = options_of(kind, tmp_path)
    (tmp_path / "whole").mkdir()
    merged = tmp_path / "d.h5"
    lines = prepare_file(name, tmp_path / "whole" / "d.h5", options, command=f"iiae -o {merged}")
    whole = (tmp_path / "whole" / "d.h5").read_bytes()
    (first,) = shards(tmp_path, name, options, 1)
    more_than_rows = sum(share.items.count for share in read_part(first).shares.values()) + 1
    assert 2 < more_than_rows < 36
    for count in (1, 3) if kind in TWINS else (1, 2, 3, more_than_rows):
        paths = [first] if count == 1 else shards(tmp_path, name, options, count)
        order = np.random.default_rng(count).permutation(count)
        assert plan_merge([paths[place] for place in order]).write(merged) == lines
        assert merged.read_bytes() == whole
        said = [line for path in paths for line in read_part(path).skipped]
        assert len(said) == LOST.get(kind, 0)
        for line in said if kind != "some-cars" else ():  # which has enough without the broken one
            assert any(one.startswith(line) for one in lines)
        for path in (merged, *paths):
            assert not partial_of(path).exists()
            path.unlink()


def test_every_block_is_in_one_shard_and_shards_are_even(tmp_path):
    readings = [
        work.row_reading(name, np.zeros((rows, 1), np.float32))
        for name, rows in (("a", 9), ("b", 1), ("c", 4))
    ]
    for count in (1, 2, 3, 8, 20):
        parts = [shares_of(readings, Part(index, count)) for index in range(count)]
        for place, reading in enumerate(readings):
            assert [block for part in parts for block in part[place][1]] == list(reading.blocks)
        sizes = [sum(len(blocks) for _, blocks in part) for part in parts]
        assert sum(sizes) == 5 + 1 + 2 and max(sizes) - min(sizes) <= 1


def test_a_shard_reads_its_own_pictures_alone(tmp_path, monkeypatch):
    name, options = options_of("pairs", tmp_path, fractions=(0.0, 0.0))
    opened = []
    decode = prepare.folders.read_splits.__globals__["decode"]
    monkeypatch.setattr(
        "iiae_cli.data.sources.pairing.decode",
        lambda path, *rest: opened.append(path) or decode(path, *rest),
    )
    paths = []
    for index in range(4):
        before = len(opened)
        paths.append(shard(tmp_path, name, options, index, 4))
        assert 4 <= len(opened) - before <= 6
    assert len(opened) == len(set(opened)) == 22
    plan_merge(paths).write(tmp_path / "d.h5")
    assert len(opened) == 22  # merging decodes nothing


def test_merging_computes_no_feature_and_reads_few_rows_at_a_time(tmp_path, monkeypatch):
    name, options = options_of("classes", tmp_path)
    paths = shards(tmp_path, name, options, 3)
    monkeypatch.setattr(extraction, "build_backbone", None)
    monkeypatch.setattr("iiae_cli.data.late_rows.COPY_BYTES", 5000)
    plan_merge(paths).write(tmp_path / "d.h5")
    assert DataFile(tmp_path / "d.h5").split("train").x.rows.shape == (6, 1024)


# ---- interruption


@pytest.mark.parametrize("kind", ["pairs", "classes", "mnist-32"])
def test_an_interrupted_shard_is_taken_up(tmp_path, capsys, kind):
    name, options = options_of(kind, tmp_path)
    whole = shard(tmp_path, name, options, 1, 2, output="whole.h5").read_bytes()
    with pytest.raises(Interrupted, match="are saved"):
        shard(tmp_path, name, options, 1, 2, stop=StopAt(2))
    path = tmp_path / "1-of-2.h5"
    assert partial_of(path).is_dir() and not path.exists()
    with pytest.raises(IiaeError, match="holds interrupted work"):
        shard(tmp_path, name, options, 1, 2)
    shard(tmp_path, name, options, 1, 2, resume=True)
    said = capsys.readouterr().err
    assert "shard 1/2: " in said and "resuming " in said and "afresh" not in said
    assert path.read_bytes() == whole and not partial_of(path).exists()


def test_work_of_another_shard_is_not_taken_up(tmp_path, capsys):
    name, options = options_of("pairs", tmp_path)
    whole = shard(tmp_path, name, options, 1, 2).read_bytes()
    with pytest.raises(Interrupted):
        shard(
            tmp_path,
            name,
            options,
            0,
            2,
            output="z.h5",
            stop=StopAt(2),
        )
    shard(tmp_path, name, options, 1, 2, output="z.h5", resume=True)
    assert "begun with another shard: starting afresh" in capsys.readouterr().err
    assert (tmp_path / "z.h5").read_bytes() == whole


def test_a_signal_while_merging_leaves_nothing(tmp_path):
    name, options = options_of("pairs", tmp_path)
    paths = shards(tmp_path, name, options, 2)
    with pytest.raises(Interrupted, match="nothing was written"):
        plan_merge(paths).write(tmp_path / "d.h5", stop=StopAt(0))
    assert not (tmp_path / "d.h5").exists() and not partial_of(tmp_path / "d.h5").exists()


# ---- refusals


def refusal(call, *arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_missing_and_doubled_shards_are_named(tmp_path):
    name, options = options_of("pairs", tmp_path)
    paths = shards(tmp_path, name, options, 3)
    error = refusal(plan_merge, [paths[2], paths[0]])
    assert error.message == "shard 1/3 is missing"
    assert error.hint == "make the rest: iiae prepare pairs … --shard 1/3 --resume"
    assert "shard 2/3 is given twice" in refusal(plan_merge, [*paths, paths[2]]).message
    other = shard(tmp_path, name, options, 1, 2)
    assert "1-of-2.h5 is shard 1/2" in refusal(plan_merge, [paths[0], other]).message


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 6}, "another seed than"),
        ({"image_size": 20}, "another image size than"),
        ({"limit": 2}, "another limit than"),
        ({"fractions": (0.3, 0.3)}, "another fractions than"),
        ({"features": FeatureOptions(batch_size=3)}, "another batch size than"),
        ({"source": "other"}, "another content of the source, source than"),
        ({"touched": "x/3.png"}, "another content of the source than"),
        ({"version": "0"}, "another version than"),
    ],
)
def test_a_shard_of_another_preparation_is_refused(tmp_path, monkeypatch, change, said):
    name, options = options_of("pairs", tmp_path)
    first = shard(tmp_path, name, options, 0, 2)
    if change.get("source"):
        change = {"source": shutil.copytree(options.source, tmp_path / "other")}
    if "touched" in change:
        os.utime(options.source / change["touched"], (1, 1))
        change = {}
    if "version" in change:
        monkeypatch.setattr("iiae_cli.data.sources.settings.versions", lambda: {"iiae": "0"})
        change = {}
    second = shard(tmp_path, name, PrepareOptions(**{**vars(options), **change}), 1, 2)
    assert f"1-of-2.h5 was made with {said}" in refusal(plan_merge, [first, second]).message


def test_a_shard_of_another_set_is_refused(tmp_path):
    options = PrepareOptions(limit=3)
    paths = [
        shard(tmp_path, name, options, index, 2)
        for index, name in enumerate(("digits-cdcb", "digits-edge"))
    ]
    assert "1-of-2.h5 is a part of digits-edge" in refusal(plan_merge, paths).message


def test_features_of_another_network_are_refused(tmp_path, monkeypatch):
    name, options = options_of("classes", tmp_path)
    paths = shards(tmp_path, name, options, 2)
    with (
        monkeypatch.context() as patch
    ):  # the file that torch's cache has may be another on another machine
        patch.setattr("iiae_cli.data.sources.extraction._versions", lambda: {"torch": "1"})
        other = shard(tmp_path, name, options, 1, 2, output="other.h5")
        assert (
            "the network or its library of train/x is not"
            in refusal(plan_merge(paths).write, tmp_path / "d.h5").message
        )
    assert (
        "other.h5 was made by another network than"
        in refusal(plan_merge, [paths[0], other]).message
    )


def test_shards_of_several_machines_are_merged_with_a_warning(tmp_path, capsys):
    paths = shards(tmp_path, *options_of("classes", tmp_path), 2)
    plan_merge(paths)
    assert "computed on" not in capsys.readouterr().err
    with h5py.File(paths[1], "a") as file:
        file.attrs["readings"] = file.attrs["readings"].replace(
            '"machine": "cpu"', '"machine": "NVIDIA X"'
        )
    plan_merge(paths)
    assert "warning: the shards were computed on NVIDIA X, cpu" in capsys.readouterr().err


def test_a_source_that_changes_before_the_merge_is_refused(tmp_path):
    name, options = options_of("pairs", tmp_path)
    paths = shards(tmp_path, name, options, 2)
    os.utime(options.source / "x" / "0.png", (1, 1))
    error = refusal(plan_merge(paths).write, tmp_path / "d.h5")
    assert "was made with another content of the source than there is now" in error.message
    assert not (tmp_path / "d.h5").exists() and not partial_of(tmp_path / "d.h5").exists()


def test_arrays_that_change_unseen_before_the_merge_are_refused(tmp_path, monkeypatch):
    name, options = options_of("digits", tmp_path)
    paths = shards(tmp_path, name, options, 2)
    monkeypatch.setattr(prepare, "TEST_DIGITS", 301)
    error = refusal(plan_merge(paths).write, tmp_path / "d.h5")
    assert "the source of train/x is not what it was" in error.message


def test_fine_tuning_is_refused_and_its_networks_are_taken(tmp_path):
    name, options = options_of("classes", tmp_path)
    tuned = PrepareOptions(
        source=options.source,
        features=FeatureOptions(
            **{**RANDOM, "fine_tune_epochs": 1}, save_backbone=tmp_path / "net"
        ),
    )
    error = refusal(shard, tmp_path, name, tuned, 0, 2)
    assert "fine-tuning looks at all training pictures" in error.message
    assert "--save-backbone DIR" in error.hint and "--backbone-weights DIR" in error.hint
    assert not partial_of(tmp_path / "0-of-2.h5").exists()
    prepare_file(name, tmp_path / "whole.h5", tuned, command="")
    kept = PrepareOptions(
        source=options.source,
        features=FeatureOptions(backbone_weights=str(tmp_path / "net"), batch_size=2),
    )
    prepare_file(name, tmp_path / "again.h5", kept, command=f"iiae -o {tmp_path / 'd.h5'}")
    plan_merge(shards(tmp_path, name, kept, 3)).write(tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    np.testing.assert_array_equal(
        DataFile(tmp_path / "d.h5").split("test").y.rows,
        DataFile(tmp_path / "whole.h5").split("test").y.rows,
    )


def test_a_finished_shard_is_known_again(tmp_path):
    name, options = options_of("pairs", tmp_path)
    found = read_part(shard(tmp_path, name, options, 0, 2))
    assert is_part_of(found, name, options, Part(0, 2))
    assert not is_part_of(found, name, options, Part(1, 2))
    assert not is_part_of(found, "facades", options, Part(0, 2))
    assert not is_part_of(found, name, PrepareOptions(**{**vars(options), "seed": 9}), Part(0, 2))


# ---- damage


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def replaced(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


def without(name):
    return lambda file: file.__delitem__(name)


def changed_json(name, change):
    def apply(file):
        value = json.loads(file.attrs[name])
        change(value)
        file.attrs[name] = json.dumps(value)

    return apply


DAMAGE = {
    "shard is no JSON": attribute("shard", "{broken"),
    "no such shard": attribute("shard", '{"index": 2, "count": 2}'),
    "settings are no object": attribute("settings", "[1]"),
    "command is no list": attribute("command", "{}"),
    "no readings": attribute("readings", "3"),
    "a reading without a size": changed_json("readings", lambda value: value[0].pop("size")),
    "more items than there are": changed_json(
        "readings", lambda value: value[0].update(count=10**18, stop=10**18)
    ),
    "no group": without("train-x"),
    "no places": without("train-x/places"),
    "a link elsewhere": replaced("train-x", h5py.ExternalLink("other.h5", "/")),
    "places of other items": replaced("train-x/places", np.arange(8) + 1),
    "places out of order": replaced("train-x/places", np.array([1, 0, *range(2, 8)])),
    "fewer rows than places": replaced("train-x/rows0", np.zeros((7, 8, 8, 3), np.uint8)),
    "no rows": without("train-x/rows0"),
    "rows of another kind": replaced("train-x/rows0", np.zeros((8, 8, 8, 3), np.float64)),
    "rows that are empty": replaced("train-x/rows0", np.zeros((8, 0, 8, 3), np.uint8)),
}


@pytest.fixture(scope="module")
def whole_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "BLOCK_ITEMS", 2)
        name, options = options_of("pairs", folder, fractions=(0.0, 0.0))
        shutil.copy(options.source / "x" / "3.png", options.source / "x" / "4.png")
        return shards(folder, name, options, 3)


@pytest.fixture
def copies(whole_shards, tmp_path):
    """Three shards to damage, of a source that is still there."""
    return [Path(shutil.copy(path, tmp_path)) for path in whole_shards]


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_refused(copies, change):
    with h5py.File(copies[0], "a") as file:
        assert len(file["train-x/places"]) == 8
        change(file)
    error = refusal(plan_merge, copies)
    assert error.message.startswith(f"{copies[0]} is damaged") and "--shard" in error.hint


HOSTILE = {
    "other blocks": (
        changed_json("shard", lambda value: value.update(index=2)),
        "holds other blocks",
    ),
    "rows of other shapes": (
        replaced("train-x/rows0", np.zeros((8, 8, 9, 3), np.uint8)),
        "rows of other shapes",
    ),
    "one kind of rows too many": (
        lambda file: file.__setitem__("train-x/rows1", np.zeros((8, 1, 1), np.uint8)),
        "shapes",
    ),
    "an option that no shard has": (
        changed_json("options", lambda value: value.update(download=True)),
        "its options are no options",
    ),
    "an option of features that no shard has": (
        changed_json("options", lambda value: value["features"].update(save_backbone="elsewhere")),
        "its options are no options",
    ),
    "an option of another type": (
        changed_json("options", lambda value: value.update(seed="one")),
        "are no options",
    ),
    "another source": (
        changed_json("options", lambda value: value.update(source="/etc")),
        "another content of the source",
    ),
}


@pytest.mark.parametrize("change, said", HOSTILE.values(), ids=HOSTILE)
def test_a_shard_that_says_something_else_is_refused(copies, tmp_path, change, said):
    with h5py.File(copies[0], "a") as file:
        change(file)
    if said == "holds other blocks":  # the two have changed names
        with h5py.File(copies[2], "a") as file:
            file.attrs["shard"] = json.dumps({"index": 0, "count": 3})
    assert said in refusal(lambda: plan_merge(copies).write(tmp_path / "d.h5")).message
    assert not (tmp_path / "d.h5").exists()


def test_what_is_no_shard_is_refused(tmp_path):
    name, options = options_of("digits", tmp_path)
    path = shard(tmp_path, name, options, 0, 1)
    plan_merge([path]).write(tmp_path / "d.h5")
    assert (
        "has schema iiae.data/1, expected iiae.data-part/1"
        in refusal(plan_merge, [tmp_path / "d.h5"]).message
    )
    error = refusal(DataFile, path)
    assert "is one shard of a data set" in error.message and "--merge" in error.hint
    assert "does not exist" in refusal(plan_merge, [tmp_path / "none.h5"]).message
    with h5py.File(path, "a") as file:
        file.attrs["name"] = "other"
    assert "unknown data set 'other'" in refusal(plan_merge, [path]).message
