"""Queries and their neighbours: who is right, how it is shown, and what is left open."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.grids import NEAR, RIGHT, TILE, WRONG, to_rgb
from iiae_cli.report.retrieval import Retrieval, draw_montage, judgement

PARTNER, SAME, DIFFERENT = "partner", "same class", "other class"


# ---- the montage


def queries(*ids, labels=None, domain="x", **more):
    encoded = Encoded(np.zeros((len(ids), 2), np.float32))
    return LatentCache(encoded, list(ids), labels, domain, "f" * 16, (2,), **more)


def gallery(*ids, **more):
    return queries(*ids, domain="y", **more)


def verdicts(asked, searched, split=None):
    judge, rows = judgement(asked, searched, split), range(len(searched.ids))
    return [[judge(query, row) for row in rows] for query in range(len(asked.ids))]


@pytest.mark.parametrize(
    "asked, searched, expected",
    [
        ("t/2", ["t/1", "t/2"], [None, PARTNER]),
        ("pictures/x/2.png", ["t/1", "t/2"], [None, PARTNER]),  # the file name without its ending
        ("b/1", ["a/1", "b/1"], [None, PARTNER]),  # an id is worth more than a file name
        ("1.png", ["cat/1.png", "dog/1.png"], [None, None]),  # a name that occurs twice
    ],
)
def test_names_find_the_partner(asked, searched, expected):
    assert verdicts(queries(asked), gallery(*searched)) == [expected]


def test_without_a_partner_classes_decide():
    searched = gallery("1", "2", labels=["7", "8"])
    assert verdicts(queries("q", labels=["7"]), searched) == [[SAME, DIFFERENT]]
    assert verdicts(queries("q"), searched) == [[None, None]]


def split_of(ids_x, ids_y, labels_x=None, labels_y=None, **more):
    rows_x, rows_y = (np.zeros((len(ids), 4, 4, 3), np.uint8) for ids in (ids_x, ids_y))
    return Split(Side(rows_x, ids_x, labels_x), Side(rows_y, ids_y, labels_y), **more)


def test_the_pairs_of_a_split_are_worth_more_than_names():
    split = split_of(["a", "b"], ["a", "b", "c"], pairs=np.array([[0, 1], [1, 0], [1, 2]]))
    forward = verdicts(queries("a", "b"), gallery("a", "b", "c"), split)
    assert forward == [[None, PARTNER, None], [PARTNER, None, PARTNER]]
    back = verdicts(gallery("c", "b"), queries("a", "b"), split)
    assert back == [[None, PARTNER], [PARTNER, None]]


def test_rows_that_belong_together_by_class_have_no_partner(tmp_path):
    labels_x, labels_y = ["cat", "dog"], ["dog", "dog", "cat"]
    split = split_of(["1", "2"], ["1", "2", "3"], labels_x, labels_y)
    write_data_file(tmp_path / "c.h5", "classes", {"test": split}, {"alignment": "class"})
    source = {"data": str(tmp_path / "c.h5"), "split": "test"}
    asked = queries("1", "2", labels=labels_x, source=source)
    searched = gallery("1", "2", "3", labels=labels_y, source=source)
    assert verdicts(asked, searched, split) == [
        [DIFFERENT, DIFFERENT, SAME],
        [SAME, SAME, DIFFERENT],
    ]


def draw(asked, searched, order):
    return draw_montage(asked, searched, np.array([order]), np.ones((1, len(order))))


def count(image, colour):
    return int((to_rgb(np.asarray(image)) == colour).all(2).sum())


def test_frames_follow_the_verdicts():
    searched = gallery("1", "2", "3", "4", labels=["a", "a", "b", "b"])
    image = draw(queries("2", labels=["a"]), searched, [1, 0, 2, 3])
    assert 2 * count(image, RIGHT) == 2 * count(image, NEAR) == count(image, WRONG) > 0


def test_pictures_of_features_are_read_below_their_source(tmp_path):
    (tmp_path / "photos").mkdir()
    red = np.zeros((4, 4, 3), np.uint8) + np.uint8([255, 0, 0])
    Image.fromarray(red).save(tmp_path / "photos/1.png")
    side = Side(np.zeros((1, 3), np.float32), ["photos/1.png"], ["cat"])
    attributes = {"alignment": "class", "source": str(tmp_path)}
    write_data_file(tmp_path / "f.h5", "features", {"test": Split(side, side)}, attributes)
    source = {"data": str(tmp_path / "f.h5"), "split": "test"}
    searched = gallery("photos/1.png", labels=["cat"], source=source)
    image = draw(queries("photos/1.png", labels=["cat"], source=source), searched, [0])
    assert count(image, (255, 0, 0)) == 2 * TILE * TILE


def test_where_nothing_is_known_nothing_is_framed():
    image = draw(queries("q"), gallery("1", "2"), [1, 0])
    assert count(image, RIGHT) == count(image, WRONG) == 0
    known = draw(queries("1"), gallery("1", "2"), [1, 0])
    assert known.height > image.height  # the word


# ---- the report's panels


def retrieval(x, y, labels_x=None, labels_y=None, *, by_class=False):
    ids, rows = ["0", "1", "2"], np.zeros((3, 1))
    sides = Side(rows, ids, labels_x), Side(rows, ids, labels_y)
    metric = "cosine" if by_class else "euclidean"
    return Retrieval("x → y", sides, (np.array(x), np.array(y)), by_class, metric, Path())


def test_the_worst_failures_are_shown():
    # x₀ and x₁ find their partners first; x₂'s lies behind both others, at rank 3.
    way = retrieval([[0], [10], [4]], [[1], [10], [-20]], list("abb"), list("abb"))
    panel = way.failures()
    assert panel.headers == ["query", "its partner", "rank 1", "rank 2", "rank 3"]
    (row,) = panel.rows
    assert [tile.caption[0] for tile in row] == ["2", "2", "0", "1", "2"]
    assert [tile.tone for tile in row] == [None, None, "wrong", "near", "right"]
    assert (row[0].caption[-1], row[4].caption[-1]) == ("partner at rank 3", "partner, distance 24")


def test_a_strip_has_no_captions_but_of_what_has_no_picture():
    (row,) = retrieval([[0], [10], [4]], [[1], [10], [-20]]).panel("title", np.array([1])).rows
    assert [tile.caption for tile in row] == [["1"], ["1"], ["0"], ["2"]]
    assert [tile.tone for tile in row] == [None, "right", None, None]


def test_classes_are_listed_from_the_worst():
    x, y = [[1, 0], [1, 0.1], [0, 1]], [[1, 0], [0, 1], [1, 1]]
    way = retrieval(x, y, ["a", "b", "nowhere"], ["a", "b", "b"], by_class=True)
    table = way.classes()
    # a: its one item is first, 1. b: its items are second and third, (1/2 + 2/3) / 2.
    assert [(name, count) for name, _, count in table.rows] == [("b", 1), ("a", 1)]
    assert [value for _, value, _ in table.rows] == pytest.approx([7 / 12, 1.0])
    (row,) = way.failures().rows
    assert (row[0].caption[0], row[0].caption[-1]) == ("1", "average precision 0.583")
