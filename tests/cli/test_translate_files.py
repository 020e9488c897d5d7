"""Files of single translations: names are unique, and known before anything is written."""

from pathlib import Path

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
    "ids",
    [
        ["a/1.png", "b/1.png", "c/1.png"],
        ["1.png", "1.png", "1-2.png"],
        ["1-2.png", "1.png", "1.png"],
        ["A.png", "a.png"],
        ["1.png", "1.png", "1-2.png", "1-2.png", "1-2-2.png", "1.png"],
    ],
)
def test_no_two_files_are_the_same_even_where_case_is_ignored(tmp_path, ids):
    files = [name for line in plan(tmp_path, ids, ["p/red.png", "q/red.png"]) for name in line]
    assert len({name.casefold() for name in files}) == len(files) == 2 * len(ids)


def test_an_input_and_a_reference_cannot_make_up_the_same_name(tmp_path):
    files = plan(tmp_path, ["a", "a-to-y-b"], ["b-to-y-c", "c"])
    assert len({name for line in files for name in line}) == 4


def test_many_inputs_of_one_stem_are_numbered_at_once(tmp_path):
    files = plan(tmp_path, [f"{number}/same.png" for number in range(20000)])
    assert files[-1] == ["same-20000-to-y-sample1.png"]


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "2-to-y-sample1.png").write_text("mine")
    error = refusal(plan, tmp_path, ["1.png", "2.png"])
    assert "2-to-y-sample1.png already exists" in error.message and "--overwrite" in error.hint
    assert plan(tmp_path, ["1.png", "2.png"], overwrite=True)[1] == ["2-to-y-sample1.png"]


def test_an_input_is_never_replaced(tmp_path):
    mine = tmp_path / "1-to-y-sample1.png"
    mine.write_text("mine")
    ids = [str(tmp_path / "1.png"), str(mine)]
    error = refusal(plan, tmp_path, ids, overwrite=True)
    assert "is an input, too" in error.message and "-o" in error.hint
    assert plan(tmp_path / "other", ids, overwrite=True)


def test_a_file_in_the_folders_place_is_a_users_error(tmp_path):
    Path(tmp_path / "out").write_text("mine")
    assert "out" in refusal(plan, tmp_path / "out", ["1.png"]).message
