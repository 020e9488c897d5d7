"""The published lists, names, and the ways to divide classes."""

import hashlib

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.leaks import class_list_hash, normalise_class
from iiae_cli.data.sources.class_splits import CLASS_SPLITS, split_named, split_unseen

HASHES = {
    "sempcyc-25": "48988ec24cb3c49048e0350d2244bb638f6080a32513a0ff7cf2589282a8eb9b",
    "eccv18-21": "e9111ba44e60f0c421e90167978c3aa5067206421046818501bafe4339a74a5a",
    "sake-25": "8e6c3d72376d8b256f068b4370bc7747dacf59ce2a03b9ca0250e9d8c45b115d",
}


def refusal(call, *arguments):
    with pytest.raises(IiaeError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "count"), [("sempcyc-25", 25), ("eccv18-21", 21), ("sake-25", 25)]
)
def test_a_published_list_has_its_classes(name, count):
    classes = CLASS_SPLITS[name]
    assert len(classes) == len(set(classes)) == count
    assert all(one == normalise_class(one) for one in classes)
    assert class_list_hash(classes) == HASHES[name]


def test_the_lists_overlap_as_published():
    first, second, third = (
        set(CLASS_SPLITS[name]) for name in ("sempcyc-25", "eccv18-21", "sake-25")
    )
    assert first & second == {"door", "pear", "rhinoceros", "saw", "wheelchair"}
    assert first & third == {"bell", "squirrel", "tank", "wheelchair"}
    assert second & third == {"scissors", "tree", "wheelchair", "windmill"}


def test_the_hash_is_of_the_sorted_names():
    assert class_list_hash(["b", "a", "é"]) == hashlib.sha256("a\nb\né".encode()).hexdigest()
    assert class_list_hash(["a", "b"]) != class_list_hash(["a", "c"])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("hot-air_balloon", "hot_air_balloon"),
        ("jack-o-lantern", "jack_o_lantern"),
        ("teddy-bear", "teddy_bear"),
        ("wine bottle", "wine_bottle"),
        ("songbird", "songbird"),
        ("car_(sedan)", "car_(sedan)"),
    ],
)
def test_names_have_one_spelling(name, plain):
    assert normalise_class(name) == normalise_class(plain) == plain


def test_a_named_split_tests_on_its_list_and_trains_on_the_others():
    known = {*CLASS_SPLITS["sempcyc-25"], "ant", "zebra"}
    division = split_named(known, "sempcyc-25")
    assert division.name == "sempcyc-25"
    assert division.train == ("ant", "zebra") and division.test == tuple(
        sorted(CLASS_SPLITS["sempcyc-25"])
    )


def test_missing_classes_of_a_named_split_are_named():
    known = {*CLASS_SPLITS["sake-25"], "ant"} - {"harp", "camel"}
    assert "camel, harp" in refusal(split_named, known, "sake-25")
    assert "no class to train on" in refusal(split_named, CLASS_SPLITS["sake-25"], "sake-25")
    assert "unknown class split 'sake'" in refusal(split_named, known, "sake")


def test_a_number_of_classes_is_drawn_by_seed():
    known = [f"c{number}" for number in range(20)]
    division = split_unseen(known, "6", 3)
    assert division == split_unseen(reversed(known), "6", 3) and division.name == "unseen-6-seed3"
    assert len(division.test) == 6 and sorted({*division.train, *division.test}) == sorted(known)
    assert len({split_unseen(known, "6", seed).test for seed in range(5)}) > 1
    for number in ("0", "20", "21"):
        assert "leaves nothing" in refusal(split_unseen, known, number, 0)


def test_a_file_names_classes_in_any_spelling(tmp_path):
    names = tmp_path / "unseen.txt"
    names.write_text("# mine\nteddy bear\n\nzebra\n")
    division = split_unseen(["ant", "teddy-bear", "zebra"], str(names), 0)
    assert (division.name, division.train, division.test) == (
        "given",
        ("ant",),
        ("teddy-bear", "zebra"),
    )
    assert "teddy bear" in refusal(split_unseen, ["ant", "zebra"], str(names), 0)
    names.write_text("# nothing\n")
    assert "names no class" in refusal(split_unseen, ["ant"], str(names), 0)
    assert "neither a number nor" in refusal(split_unseen, ["ant"], str(tmp_path / "none.txt"), 0)
    names.write_text("ant\n")
    assert "no class to train on" in refusal(split_unseen, ["ant"], str(names), 0)
