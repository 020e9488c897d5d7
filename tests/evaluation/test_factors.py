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

NONE = np.empty(0)


def objects(*texts):
    return np.array(texts, dtype=object)


@pytest.mark.parametrize(
    "owner, names",
    [
        ("shared", ["class", "shared_shape", "pitch", "x_mine"]),
        ("x", ["x_color"]),
        ("y", ["y_view"]),
        (None, ["yaw", "xylem"]),
    ],
)
def test_the_name_or_the_caller_says_whose_a_factor_is(owner, names):
    assert {owner_of(name, ["pitch", "x_mine"]) for name in names} == {owner}


@pytest.mark.parametrize(
    "values, classes",
    [
        (np.array([[1, 2], [3, 4]], np.uint8), 0),
        (np.zeros((3, 2, 2)), 0),
        (np.array([0.5, 1.0]), 0),
        (objects("ink", "chalk", "ink"), 2),
        (np.array([True, False]), 2),
        (np.array([b"a", b"b"]), 2),
        (np.arange(MAX_CODES), MAX_CODES),
        (np.arange(MAX_CODES + 1), 0),
        (np.arange(MAX_CODES, dtype=float), 0),
    ],
)
def test_numbers_are_quantities_words_and_few_codes_are_classes(values, classes):
    factor = read_factor("factor", values, NONE)
    assert factor.classes == classes and factor.known.all()
    if not classes:
        assert factor.values.shape == (len(values), values[0].size)
    assert read_factor("class", np.arange(MAX_CODES + 1), NONE).classes == MAX_CODES + 1


def test_empty_texts_nan_and_rare_classes_are_unknown():
    line = read_factor("line", np.array([0.5, np.nan, np.inf]), NONE)
    assert line.known.tolist() == [True, False, False]
    pen = read_factor("pen", objects("ink", "", "chalk", "ink", "quill"), NONE)
    assert pen.values.tolist() == [1, -1, 0, 1, 2]
    rare = read_factor("pen", objects("a", "a", "b", "c", "c"), NONE, least=2)
    assert rare.classes == 2 and rare.known.tolist() == [True, True, False, True, True]
    many = objects(*[f"c{code:03d}" for code in range(MAX_CLASSES + 5)], *["c054"] * 3)
    factor = read_factor("pen", many, NONE)
    assert factor.classes == MAX_CLASSES and factor.known[-1]
    assert factor.known.sum() == MAX_CLASSES + 3


def test_rows_to_learn_from_follow_and_what_is_strange_in_them_is_unknown():
    pen = read_factor("pen", objects("a", "b"), objects("b", "z", ""))
    assert pen.values.tolist() == [0, 1, 1, -1, -1]
    line = read_factor("line", np.array([[1.0], [2.0]]), np.array([[3.0]]))
    assert line.values.ravel().tolist() == [1, 2, 3]
    for unlike in (objects("a"), np.ones((1, 2)), np.full(1, np.nan)):
        assert read_factor("line", np.ones(2), unlike).known.tolist() == [True, True, False]


def test_a_domains_columns_are_the_pairs_factors_and_its_own_labels():
    x, y = Side(np.zeros((2, 1)), ["a", "b"], ["u", "v"]), Side(np.zeros((2, 1)), ["a", "b"])
    split = Split(x, y, {"x_color": np.ones((2, 3)), "class": np.array([3, 4])})
    columns = columns_of(split, "x", by_class=False)
    assert set(columns) == {"x_color", "class"} and columns["class"].tolist() == ["u", "v"]
    assert columns_of(split, "y", by_class=False)["class"].tolist() == [3, 4]
    assert set(columns_of(split, "x", by_class=True)) == {"class"}


def test_unknown_names_are_refused_together():
    with pytest.raises(IiaeError) as caught:
        check_names(["yaw", "pitch", "roll"], {"pitch", "class"})
    assert caught.value.message == "there is no factor 'yaw', 'roll'"
    assert caught.value.hint == "factors of this data: class, pitch"
    with pytest.raises(IiaeError, match="no factor 'a'") as caught:
        check_names(["a"], set())
    assert caught.value.hint == "this data holds no factors"
