"""Factors of a data file: whose each is, what is a class, which rows know it."""

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import Side, Split
from iiae_cli.evaluation.factors import (
    MAX_CLASSES,
    MAX_CODES,
    check_names,
    columns_of,
    owner_of,
    read_factor,
)


def objects(*texts):
    return np.array(texts, dtype=object)


@pytest.mark.parametrize(
    "name, owner",
    [
        ("class", "shared"),
        ("shared_shape", "shared"),
        ("x_color", "x"),
        ("y_view", "y"),
        ("yaw", None),
        ("xylem", None),
        ("pitch", "shared"),
        ("x_mine", "shared"),
    ],
)
def test_whose_a_factor_is_says_its_name_or_the_caller(name, owner):
    assert owner_of(name, ["pitch", "x_mine"]) == owner


def test_numbers_are_quantities_and_words_are_classes():
    colour = read_factor("x_color", np.array([[1, 2], [3, 4]], np.uint8), None, "x")
    assert (
        colour.classes == 0 and colour.values.dtype == np.float64 and colour.values.shape == (2, 2)
    )
    assert read_factor("line", np.array([0.5, np.nan, np.inf]), None, None).known.tolist() == [
        True,
        False,
        False,
    ]
    cube = read_factor("cube", np.zeros((3, 2, 2)), None, None)
    assert cube.values.shape == (3, 4)
    pen = read_factor("pen", objects("ink", "", "chalk", "ink"), None, None)
    assert (
        pen.classes == 2
        and pen.values.tolist() == [1, -1, 0, 1]
        and pen.known.tolist() == [True, False, True, True]
    )
    assert read_factor("flag", np.array([True, False]), None, None).classes == 2
    assert read_factor("bytes", np.array([b"a", b"b"]), None, None).classes == 2


def test_few_whole_numbers_are_classes_and_many_a_quantity():
    assert read_factor("view", np.arange(MAX_CODES), None, None).classes == MAX_CODES
    assert read_factor("view", np.arange(MAX_CODES + 1), None, None).classes == 0
    assert read_factor("view", np.arange(MAX_CODES, dtype=float), None, None).classes == 0
    assert read_factor("class", np.arange(MAX_CODES + 1), None, None).classes == MAX_CODES + 1


def test_rare_classes_and_those_beyond_the_most_frequent_are_unknown():
    rare = read_factor("pen", objects("a", "a", "b", "c", "c"), None, None, least=2)
    assert rare.classes == 2 and rare.known.tolist() == [True, True, False, True, True]
    many = np.array(
        [f"c{code:03d}" for code in range(MAX_CLASSES + 5)] + ["c054"] * 3, dtype=object
    )
    factor = read_factor("pen", many, None, None)
    assert (
        factor.classes == MAX_CLASSES and factor.known[-1] and factor.known.sum() == MAX_CLASSES + 3
    )


def test_rows_to_learn_from_follow_and_what_is_strange_in_them_is_unknown():
    pen = read_factor("pen", objects("a", "b"), objects("b", "z", ""), None)
    assert pen.values.tolist() == [0, 1, 1, -1, -1]
    line = read_factor("line", np.array([[1.0], [2.0]]), np.array([[3.0]]), None)
    assert line.values.ravel().tolist() == [1, 2, 3]
    assert read_factor("line", np.ones(2), objects("a", "b"), None).known.tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert read_factor("line", np.ones(2), np.ones((1, 2)), None).known.tolist() == [
        True,
        True,
        False,
    ]
    assert read_factor("line", np.ones(2), np.ones((0,)), None).known.tolist() == [True, True]


def test_columns_of_a_domain():
    split = Split(
        Side(np.zeros((2, 1)), ["a", "b"], ["u", "v"]),
        Side(np.zeros((2, 1)), ["a", "b"], ["w", "w"]),
    )
    split.factors = {"x_color": np.ones((2, 3)), "class": np.array([3, 4])}
    x = columns_of(split, "x", by_class=False)
    assert set(x) == {"x_color", "class"} and x["class"].tolist() == ["u", "v"]
    assert columns_of(split, "y", by_class=True)["class"].tolist() == ["w", "w"]
    assert set(columns_of(split, "y", by_class=True)) == {
        "class"
    }  # factors are of pairs, and there are none
    split.x.labels = None
    assert columns_of(split, "x", by_class=False)["class"].tolist() == [3, 4]


def test_unknown_names_are_refused_together():
    with pytest.raises(IiaeError) as caught:
        check_names(["yaw", "pitch", "roll"], {"pitch", "class"})
    assert caught.value.message == "there is no factor 'yaw', 'roll'"
    assert caught.value.hint == "factors of this data: class, pitch"
    with pytest.raises(IiaeError, match="no factor 'a'") as caught:
        check_names(["a"], set())
    assert "holds no factors" in caught.value.hint
