"""Retrieval montages: who is right, how it is shown, and what is left open."""

import numpy as np
import pytest

from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.inference.latents import LatentCache
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.grids import RIGHT, WRONG, to_rgb
from iiae_cli.report.montage import Verdict, draw_montage, judgement


def cache(ids, labels=None, domain="y", **more):
    return LatentCache(
        Encoded(np.zeros((len(ids), 2), np.float32)), ids, labels, domain, "f" * 16, (2,), **more
    )


def verdicts(queries, gallery, split=None):
    judge = judgement(queries, gallery, split)
    return [[judge(query, row) for row in range(len(gallery))] for query in range(len(queries))]


PARTNER, OTHER = Verdict("pair", True), Verdict("pair", False)
SAME, DIFFERENT = Verdict("class", True), Verdict("class", False)


def test_the_same_id_is_the_partner():
    assert verdicts(cache(["t/2"], domain="x"), cache(["t/1", "t/2"])) == [[OTHER, PARTNER]]


def test_a_picture_of_the_partners_stem_is_a_query_with_a_partner():
    assert verdicts(cache(["pictures/x/2.png"], domain="x"), cache(["t/1", "t/2"])) == [
        [OTHER, PARTNER]
    ]


def test_an_id_is_worth_more_than_a_stem():
    assert verdicts(cache(["b/1"], domain="x"), cache(["a/1", "b/1"])) == [[OTHER, PARTNER]]


def test_a_stem_that_occurs_twice_names_no_partner():
    gallery = ["cat/1.png", "dog/1.png"]
    assert verdicts(cache(["1.png"], domain="x"), cache(gallery)) == [[None, None]]
    assert verdicts(cache(["1.png"], ["dog"], "x"), cache(gallery, ["cat", "dog"])) == [
        [DIFFERENT, SAME]
    ]


def test_without_a_partner_classes_decide_and_without_classes_nothing():
    assert verdicts(cache(["q"], ["7"], "x"), cache(["1", "2"], ["7", "8"])) == [[SAME, DIFFERENT]]
    assert verdicts(cache(["q"], None, "x"), cache(["1", "2"], ["7", "8"])) == [[None, None]]
    assert verdicts(cache(["q"], ["7"], "x"), cache(["1", "2"])) == [[None, None]]


def rows(count):
    return np.arange(count * 48, dtype=np.uint8).reshape(count, 4, 4, 3)


def test_the_pairs_of_a_split_are_worth_more_than_names():
    split = Split(
        Side(rows(2), list("ab")),
        Side(rows(3), list("abc")),
        pairs=np.array([[0, 1], [1, 0], [1, 2]]),
    )
    found = verdicts(cache(["a", "b"], domain="x"), cache(["a", "b", "c"]), split)
    assert found == [[OTHER, PARTNER, OTHER], [PARTNER, OTHER, PARTNER]]
    back = verdicts(cache(["c", "b"]), cache(["a", "b"], domain="x"), split)
    assert back == [[OTHER, PARTNER], [PARTNER, OTHER]]


def test_rows_that_belong_together_by_class_have_no_partner(tmp_path):
    split = Split(
        Side(rows(2), list("12"), ["cat", "dog"]), Side(rows(3), list("123"), ["dog", "dog", "cat"])
    )
    path = tmp_path / "classes.h5"
    write_data_file(path, "classes", {"test": split}, {"alignment": "class"})
    source = {"data": str(path), "split": "test"}
    queries = cache(["1", "2"], ["cat", "dog"], "x", source=source)
    found = verdicts(queries, cache(["1", "2", "3"], ["dog", "dog", "cat"], source=source), split)
    assert found == [[DIFFERENT, DIFFERENT, SAME], [SAME, SAME, DIFFERENT]]


def draw(queries, gallery, order):
    order = np.array(order)
    return draw_montage(
        queries, gallery, order, np.arange(order.size, dtype=float).reshape(order.shape)
    )


def count(image, colour):
    return int((to_rgb(np.asarray(image)) == colour).all(2).sum())


def test_frames_follow_the_verdicts_and_the_legend_names_the_rule():
    gallery = cache(["1", "2", "3"])
    image = draw(cache(["2"], domain="x"), gallery, [[1, 0, 2]])
    swatch = count(
        draw(cache(["2"], domain="x"), gallery, [[1]]), WRONG
    )  # no wrong frame: the legend's alone
    assert swatch > 0
    assert count(image, WRONG) - swatch == 2 * (count(image, RIGHT) - swatch) > 0


def test_where_nothing_is_known_nothing_is_framed():
    image = draw(cache(["q"], domain="x"), cache(["1", "2"]), [[1, 0]])
    assert count(image, RIGHT) == count(image, WRONG) == 0
    known = draw(cache(["1"], domain="x"), cache(["1", "2"]), [[1, 0]])
    assert known.height > image.height  # the word and the legend


@pytest.mark.parametrize("labels, taller", [(None, 0), (["7", "8"], 1)])
def test_known_classes_are_named(labels, taller):
    plain = draw(cache(["q"], domain="x"), cache(["1", "2"]), [[1, 0]])
    assert (
        draw(cache(["q"], domain="x"), cache(["1", "2"], labels), [[1, 0]]).height
        == plain.height + 16 * taller
    )
