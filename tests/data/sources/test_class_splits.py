"""The published lists, names, and the ways to divide classes."""

import hashlib

import pytest
from helpers import refusal

from iiae_cli.data.datafile import class_list_hash, normalise_class
from iiae_cli.data.sources.class_splits import CLASS_SPLITS, split_named, split_unseen

HASHES = {
    "sempcyc-25": "48988ec24cb3c49048e0350d2244bb638f6080a32513a0ff7cf2589282a8eb9b",
    "eccv18-21": "e9111ba44e60f0c421e90167978c3aa5067206421046818501bafe4339a74a5a",
    "sake-25": "8e6c3d72376d8b256f068b4370bc7747dacf59ce2a03b9ca0250e9d8c45b115d",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_published_list_has_its_classes(name):
    classes = CLASS_SPLITS[name]
    assert len(classes) == len(set(classes)) == int(name.rpartition("-")[2])
    assert all(label == normalise_class(label) for label in classes)
    assert class_list_hash(classes) == HASHES[name]


def test_names_have_one_spelling_and_the_hash_is_of_the_sorted_names():
    for name in ("hot-air_balloon", "hot air balloon ", "hot_air_balloon"):
        assert normalise_class(name) == "hot_air_balloon"
    assert normalise_class("car_(sedan)") == "car_(sedan)"
    assert class_list_hash(["b", "a", "é"]) == hashlib.sha256("a\nb\né".encode()).hexdigest()


def test_a_named_split_tests_on_its_list_and_trains_on_the_others():
    known = {*CLASS_SPLITS["sempcyc-25"], "ant", "zebra"}
    division = split_named(known, "sempcyc-25")
    assert division.name == "sempcyc-25" and division.train == ("ant", "zebra")
    assert division.test == tuple(sorted(CLASS_SPLITS["sempcyc-25"]))
    known -= {"bear", "saw"}
    assert "bear, saw" in refusal(split_named, known, "sempcyc-25").message
    only = CLASS_SPLITS["sake-25"]
    assert "no class to train on" in refusal(split_named, only, "sake-25").message
    assert "unknown class split 'sake'" in refusal(split_named, known, "sake").message


def test_a_number_of_classes_is_drawn_by_seed():
    known = [f"c{number}" for number in range(20)]
    division = split_unseen(known, "6", 3)
    assert division == split_unseen(reversed(known), "6", 3) and division.name == "unseen-6-seed3"
    assert len(division.test) == 6 and sorted({*division.train, *division.test}) == sorted(known)
    assert len({split_unseen(known, "6", seed).test for seed in range(5)}) > 1
    for number in ("0", "20", "21"):
        assert "leaves nothing" in refusal(split_unseen, known, number, 0).message


def test_a_file_names_classes_in_any_spelling(tmp_path):
    path = tmp_path / "unseen.txt"
    path.write_text("# mine\nteddy bear\n\nzebra\n")
    division = split_unseen(["ant", "teddy-bear", "zebra"], str(path), 0)
    assert (division.name, division.train) == ("given", ("ant",))
    assert division.test == ("teddy-bear", "zebra")
    assert "teddy bear" in refusal(split_unseen, ["ant", "zebra"], str(path), 0).message
    path.write_text("# nothing\n")
    assert "names no class" in refusal(split_unseen, ["ant"], str(path), 0).message
    missing = str(tmp_path / "none.txt")
    assert "neither a number nor" in refusal(split_unseen, ["ant"], missing, 0).message
