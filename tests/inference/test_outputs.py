"""Names of output pictures: unique, known before anything is written, never an input's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iiae_cli.common.errors import IiaeError
from iiae_cli.inference.outputs import plan_files, write_pictures


def plan(folder, ids, names=("sample 1",), **more):
    return [
        [path.name for path in line]
        for line in plan_files(folder, ids, list(names), "y", **{"overwrite": False, **more})
    ]


def test_files_are_named_by_input_domain_and_output(tmp_path):
    found = plan(tmp_path / "new", ["a/1.png", "test/00002"], ["sample 1", "red.png"])
    assert found == [
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
    found = [
        name.casefold() for line in plan(tmp_path, ids, ["p/red.png", "q/red.png"]) for name in line
    ]
    assert len(set(found)) == len(found) == 2 * len(ids)


def test_an_input_and_a_reference_cannot_make_up_the_same_name(tmp_path):
    found = plan(tmp_path, ["a", "a-to-y-b"], ["b-to-y-c", "c"])
    assert len({name for line in found for name in line}) == 4


def test_many_inputs_of_one_stem_are_numbered_at_once(tmp_path):
    found = plan(tmp_path, [f"{number}/same.png" for number in range(20000)])
    assert found[-1] == ["same-20000-to-y-sample1.png"]


def test_an_existing_file_is_refused_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "2-to-y-sample1.png").write_text("mine")
    with pytest.raises(IiaeError, match=r"2-to-y-sample1.png already exists") as refused:
        plan(tmp_path, ["1.png", "2.png"])
    assert "--overwrite" in refused.value.hint
    assert plan(tmp_path, ["1.png", "2.png"], overwrite=True)[1] == ["2-to-y-sample1.png"]


def test_an_input_is_never_replaced(tmp_path):
    mine = tmp_path / "1-to-y-sample1.png"
    mine.write_text("mine")
    ids = [str(tmp_path / "1.png"), str(mine)]
    with pytest.raises(IiaeError, match="is an input, too") as refused:
        plan(tmp_path, ids, overwrite=True, inputs=ids)
    assert "-o" in refused.value.hint
    assert plan(tmp_path / "other", ids, overwrite=True, inputs=ids)


def test_a_file_in_the_folders_place_is_a_users_error(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(IiaeError, match="out"):
        plan(tmp_path / "out", ["1.png"])


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_pictures_are_written_without_loss(tmp_path, channels, mode):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 6, 5, channels)).astype(np.uint8)
    files = [Path(tmp_path / f"{number}.png") for number in range(2)]
    write_pictures(files, pictures)
    for path, picture in zip(files, pictures, strict=True):
        with Image.open(path) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image).reshape(6, 5, channels), picture)
