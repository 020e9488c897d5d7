"""Parts of a whole: they cover it, and a merge gets each of them once."""

from pathlib import Path

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.parts import Part, all_in_order


@pytest.mark.parametrize("total, count", [(11, 3), (3, 11), (0, 2), (64, 64), (7, 1)])
def test_parts_cover_the_whole_evenly(total, count):
    runs = [Part(index, count).of(total) for index in range(count)]
    assert [one for run in runs for one in run] == list(range(total))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert Part(0, count).name == f"0/{count}"


@pytest.mark.parametrize("index, count", [(-1, 2), (2, 2), (0, 0)])
def test_there_are_no_other_parts(index, count):
    with pytest.raises(ValueError, match="no part"):
        Part(index, count)


def given(*names):
    """Parts by their names, each with its name in capitals, from files of their names."""
    return [
        (Path(name.replace("/", "of")), Part(*map(int, name.split("/"))), f"<{name}>")
        for name in names
    ]


def refusal(*names):
    with pytest.raises(IiaeError) as caught:
        all_in_order(given(*names), "make the rest: iiae …")
    return caught.value.message, caught.value.hint


def test_parts_are_put_in_order():
    assert all_in_order(given("2/3", "0/3", "1/3"), "") == ["<0/3>", "<1/3>", "<2/3>"]


def test_what_is_missing_doubled_or_of_another_division_is_named():
    assert refusal("0/3", "2/3") == (
        "shard 1/3 is missing",
        "make the rest: iiae … --shard 1/3 --resume",
    )
    assert refusal("1/3")[0] == "shards 0/3, 2/3 are missing"
    assert refusal("0/2", "1/2", "0/2") == (
        "shard 0/2 is given twice: 0of2, 0of2",
        "name every shard once",
    )
    assert refusal("0/2", "1/3")[0] == "1of3 is shard 1/3, 0of2 0/2"
    # A damaged file may speak of any number.
    many = 10**15
    assert refusal(f"3/{many}")[0].endswith(f", 8/{many} are missing (and {many - 9} more)")
