"""Files of single translations: names are unique, and known before anything is written."""

import pytest
from helpers import refusal

from iiae_cli.cli.translate import plan_files


def plan(folder, ids, names=("sample 1",), overwrite=False):
    files = plan_files(folder, ids, list(names), "y", overwrite)
    return [[path.name for path in line] for line in files]


def test_files_are_named_by_input_domain_and_output(tmp_path):
    assert plan(tmp_path / "new", ["a/1.png", "test/00002"], ["sample 1", "red.png"]) == [
        ["1-to-y-sample1.png", "1-to-y-red.png"],
        ["00002-to-y-sample1.png", "00002-to-y-red.png"],
    ]
    assert (tmp_path / "new").is_dir() and not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("ids", "references"),
    [
        (["a/1.png", "b/1.png", "c/1.png"], ["p/red.png", "q/red.png"]),
        (["A.png", "a.png"], ["red.png"]),
        (["1.png", "1.png", "1-2.png", "1-2.png", "1-2-2.png", "1.png"], ["red.png"]),
        (["a", "a-to-y-b"], ["b-to-y-c", "c"]),
        (["1", "1", "1"], ["red", "red-2", "red"]),
    ],
)
def test_no_two_files_are_the_same_even_where_case_is_ignored(tmp_path, ids, references):
    files = [name for line in plan(tmp_path, ids, references) for name in line]
    assert len({name.casefold() for name in files}) == len(ids) * len(references)


def test_an_input_is_never_replaced(tmp_path):
    mine = tmp_path / "1-to-y-sample1.png"
    mine.write_text("mine")
    ids = [str(tmp_path / "1.png"), str(mine)]
    error = refusal(plan, tmp_path, ids, overwrite=True)
    assert "is an input" in error.message and "-o" in error.hint
    assert plan(tmp_path / "other", ids, overwrite=True)
