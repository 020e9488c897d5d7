"""Queries and their neighbours: who is right, how it is shown, and what is left open."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.grids import FRAMES, TILE, to_rgb
from iiae_cli.report.retrieval import Retrieval, Shown, montage, partners_of

PARTNER, SAME, DIFFERENT = "partner", "same class", "other class"


# ---- the montage


def queries(*ids, labels=None, domain="x", **more):
    encoded = Encoded(np.zeros((len(ids), 2), np.float32))
    return LatentCache(encoded, list(ids), labels, domain, "f" * 16, (2,), **more)


def gallery(*ids, **more):
    return queries(*ids, domain="y", **more)


def draw(asked, searched, order=None):
    """The montage of every query with all entries, in gallery order or another."""
    rows = np.array([range(len(searched.ids)) if order is None else order] * len(asked.ids))
    return montage(asked, searched, rows, np.ones(rows.shape))


def verdicts(asked, searched):
    captions = [[tile.caption for tile in row[1:]] for row in draw(asked, searched).rows]
    return [[None if "distance" in c[-1] else c[-1] for c in line] for line in captions]


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


def stored(path, ids, labels=(None, None), pairs=None, **attributes):
    """Caches of both sides of a test split, whose rows are white pictures."""
    rows = (np.full((len(names), 4, 4, 3), 255, np.uint8) for names in ids)
    sides = (Side(*side) for side in zip(rows, ids, labels, strict=True))
    write_data_file(path, "d", {"test": Split(*sides, pairs=pairs)}, attributes)
    source = {"data": str(path), "split": "test"}
    sides = zip((queries, gallery), ids, labels, strict=True)
    return (cache(*names, labels=given, source=source) for cache, names, given in sides)


def test_the_pairs_of_a_split_are_worth_more_than_names(tmp_path):
    pairs = np.array([[0, 1], [1, 0], [1, 2]])
    x, y = stored(tmp_path / "p.h5", (["a", "b"], ["a", "b", "c"]), pairs=pairs)
    assert verdicts(x, y) == [[None, PARTNER, None], [PARTNER, None, PARTNER]]
    assert verdicts(y, x) == [[None, PARTNER], [PARTNER, None], [None, PARTNER]]
    few = replace(y, ids=["c", "b"])  # a shard
    assert partners_of(few, x) == [{"b"}, {"a"}] and partners_of(x, few) == [{"b"}, {"c"}]


def test_rows_that_belong_together_by_class_have_no_partner(tmp_path):
    labels = ["cat", "dog"], ["dog", "dog", "cat"]
    x, y = stored(tmp_path / "c.h5", (["1", "2"], ["1", "2", "3"]), labels, alignment="class")
    assert verdicts(x, y) == [[DIFFERENT, DIFFERENT, SAME], [SAME, SAME, DIFFERENT]]
    assert all(tile.picture is not None for row in draw(x, y).rows for tile in row)


def count(panel, colour):
    """The number of pixels in a colour, or a frame's tone."""
    return int((to_rgb(np.asarray(panel.draw())) == FRAMES.get(colour, colour)).all(2).sum())


def test_frames_follow_the_verdicts():
    searched = gallery("1", "2", "3", "4", labels=["a", "a", "b", "b"])
    panel = draw(queries("2", labels=["a"]), searched, [1, 0, 2, 3])
    assert 2 * count(panel, "right") == 2 * count(panel, "near") == count(panel, "wrong") > 0


def test_pictures_of_features_are_read_below_their_source(tmp_path):
    (tmp_path / "photos").mkdir()
    red = np.zeros((4, 4, 3), np.uint8) + np.uint8([255, 0, 0])
    Image.fromarray(red).save(tmp_path / "photos/1.png")
    side = Side(np.zeros((1, 3), np.float32), ["photos/1.png"], ["cat"])
    attributes = {"alignment": "class", "source": str(tmp_path)}
    write_data_file(tmp_path / "f.h5", "features", {"test": Split(side, side)}, attributes)
    source = {"data": str(tmp_path / "f.h5"), "split": "test"}
    searched = gallery("photos/1.png", labels=["cat"], source=source)
    panel = draw(queries("photos/1.png", labels=["cat"], source=source), searched)
    assert count(panel, (255, 0, 0)) == 2 * TILE * TILE


def test_where_nothing_is_known_nothing_is_framed():
    panel = draw(queries("q"), gallery("1", "2"), [1, 0])
    assert count(panel, "right") == count(panel, "wrong") == 0


# ---- the report's panels


def retrieval(x, y, labels_x=None, labels_y=None, *, by_class=False):
    sides = (Shown(["0", "1", "2"], labels, {}, Path()) for labels in (labels_x, labels_y))
    metric = "cosine" if by_class else "euclidean"
    return Retrieval("x → y", *sides, (np.array(x), np.array(y)), by_class, metric)


def test_the_worst_failures_are_shown():
    # x₀ and x₁ find their partners first; x₂'s lies behind both others, at rank 3.
    way = retrieval([[0], [10], [4]], [[1], [10], [-20]], list("abb"), list("abb"))
    panel = way.failures()
    assert panel.headers == ["query", "its partner", "rank 1", "rank 2", "rank 3"]
    (row,) = panel.rows
    assert [tile.caption[0] for tile in row] == ["2", "2", "0", "1", "2"]
    assert [tile.tone for tile in row] == [None, None, "wrong", "near", "right"]
    assert row[0].caption[-1] == "partner at rank 3"
    assert row[4].caption == ["2", "class b", "distance 24", "partner"]


def test_classes_are_listed_from_the_worst():
    x, y = [[1, 0], [1, 0.1], [0, 1]], [[1, 0], [0, 1], [1, 1]]
    way = retrieval(x, y, ["a", "b", "nowhere"], ["a", "b", "b"], by_class=True)
    table = way.classes()
    # a: its one item is first, 1. b: its items are second and third, (1/2 + 2/3) / 2.
    assert [(name, count) for name, _, count in table.rows] == [("b", 1), ("a", 1)]
    assert [value for _, value, _ in table.rows] == pytest.approx([7 / 12, 1.0])
    (row,) = way.failures().rows
    assert (row[0].caption[0], row[0].caption[-1]) == ("1", "average precision 0.583")
