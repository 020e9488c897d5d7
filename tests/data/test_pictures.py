"""Picture files of every kind of damage, and where they are found; test_modes.py has the modes.

Resizing is held to Pillow's kernels, to exact areas, and to what no resizing may change.
"""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from class_sources import noise
from helpers import refusal
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iiae_cli.data import pictures
from iiae_cli.data.batches import ahead, resize
from iiae_cli.data.names import expand_inputs, find_pictures, pictures_in
from iiae_cli.data.pictures import SEEN, PictureError, decode, resize_picture
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import build

SIDES = st.integers(1, 40)


@pytest.fixture(autouse=True)
def forget():
    SEEN.take()


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


# ---- sizes


def test_transparency_meets_white_before_resizing(path):
    """A transparent half must not bleed its hidden colour into the shrunk picture."""
    array = np.zeros((4, 4, 4), np.uint8)
    array[:, :2] = (0, 0, 0, 255)
    saved(path, array)
    assert decode(path, 3, (1, 1))[0, 0, 0] == pytest.approx(127.5, abs=1)


def resized(rows, size):
    """(B, H, W, C) through (B, C, H, W) and back."""
    return resize(torch.from_numpy(rows).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).numpy()


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]))
def test_batches_and_files_are_resized_alike(height, width, new_height, new_width, channels):
    rows = noise((2, height, width, channels)) // 2 + 64  # overshoots are clamped at other stages
    batch = resized(rows, (new_height, new_width))
    assert batch.shape == (2, new_height, new_width, channels) and batch.dtype == np.uint8
    for row, picture in zip(rows, batch, strict=True):
        image = resize_picture(
            Image.fromarray(row.squeeze(2) if channels == 1 else row), (new_height, new_width)
        )
        difference = np.abs(np.asarray(image).reshape(picture.shape).astype(int) - picture)
        assert difference.max() <= 3  # each kernel rounds between its passes in its own way


def test_shrinking_by_whole_factors_is_by_exact_area():
    rows = noise((2, 12, 20, 3), seed=5)
    blocks = rows.reshape(2, 6, 2, 5, 4, 3).astype(np.float64).mean((2, 4))
    np.testing.assert_allclose(resized(rows, (6, 5)), blocks, atol=0.5 + 1e-3)


@pytest.mark.parametrize("size", [(28, 36), (10, 40)])
def test_enlarging_is_bicubic_and_clamped(size):
    rows = noise((1, 7, 9, 3), seed=6)
    rows[0, :, :4], rows[0, :, 4:] = 0, 255  # overshoots
    expected = Image.fromarray(rows[0]).resize(size[::-1], Image.Resampling.BICUBIC)
    assert np.abs(resized(rows, size)[0].astype(int) - np.asarray(expected)).max() <= 1


# ---- damage


def reason(path, call=decode):
    with pytest.raises(PictureError) as caught:
        call(path)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"])
def test_truncated_files_are_unreadable(tmp_path, suffix):
    path = saved(tmp_path / f"cut{suffix}", noise((40, 40, 3)))
    decode(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 12, 3, 0):
        path.write_bytes(whole[:length])
        assert reason(path) == "is not a readable picture"


def test_what_is_no_picture_is_named(path):
    assert reason(path) == "does not exist"
    for make in (lambda: path.write_text("just a text\n"), lambda: os.mkfifo(path)):
        make()
        assert reason(path) == reason(path, pictures.picture_size_of) == "is not a readable picture"
        path.unlink()


def test_a_decompression_bomb_is_refused(path, monkeypatch):
    saved(path, noise((20, 20, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert reason(path) == reason(path, pictures.picture_size_of) == "has too many pixels"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "no"), f"cannot be read: {os.strerror(errno.EACCES)}"),
        (OSError(errno.EINVAL, "a seek"), "is not a readable picture"),
        (MemoryError(), "does not fit into the memory"),
    ],
)
def test_a_picture_that_the_system_refuses_is_not_called_damaged(path, monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    path.touch()
    monkeypatch.setattr(Image, "open", refuse)
    assert reason(path) == said


@pytest.mark.parametrize("workers", [1, 3])
def test_decoding_many_keeps_order_and_puts_errors_in_place(tmp_path, workers):
    paths = [tmp_path / f"{number}.bmp" for number in range(200)]
    for number, path in enumerate(paths):
        if number % 50 != 7:
            saved(path, np.full((2, 3, 3), number, np.uint8))
    decoded = pictures.read_all(paths, lambda path: decode(path, 1, (1, 1)), workers)
    for number, item in enumerate(decoded):
        if number % 50 == 7:
            assert isinstance(item, PictureError) and item.path == paths[number]
        else:
            assert item.tolist() == [[[number]]]
    assert len(decoded) == 200


# ---- finding


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_folders_are_searched_in_natural_order_and_what_is_not_taken_is_counted(tmp_path):
    names = ["1.JPG", "2.png", "10.png", "a9/1.jfif", "a009b/1.avif", "a10/1.tif", "b/3.JP2"]
    ours = "b.heic c.TXT d.txt e"
    systems = ".DS_Store Thumbs.db @eaDir/a.jpg .thumbs/a.png $RECYCLE.BIN/a.png #recycle/a.png"
    for name in [*names, *ours.split(), *systems.split(), "._a.png"]:
        touch(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    found = find_pictures([str(tmp_path), str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == names * 2
    assert SEEN.take()["left_out"] == {".txt": 2, ".heic": 1, "no suffix": 1}


def test_linked_folders_are_walked_and_loops_end(tmp_path):
    """A folder of a picture that links to another, to itself, to what it lies in and to nothing."""
    touch(tmp_path / "store" / "2.png")
    inside = tmp_path / "inside"
    touch(inside / "own.png")
    (inside / "part").symlink_to(tmp_path / "store")
    (inside / "loop").symlink_to(inside)
    (inside / "above").symlink_to(tmp_path)
    (inside / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "store" / "back").symlink_to(inside)
    (tmp_path / "store" / "self").symlink_to("self")
    assert find_pictures([str(inside)]) == [inside / "own.png", inside / "part" / "2.png"]
    left_out = {"broken link": 2, "link to a folder that it lies in": 3}
    assert SEEN.take()["left_out"] == left_out


def test_what_lies_behind_a_link_is_part_of_a_source(tmp_path):
    link = tmp_path / "source" / "link"
    for number in range(2):
        touch(tmp_path / f"store{number}" / "0.png").write_bytes(bytes(number))
    link.parent.mkdir()
    (link.parent / "loop").symlink_to(link.parent)
    link.symlink_to(tmp_path / "store0")
    options = PrepareOptions(source=link.parent, side_by_side=True)
    before = build("pairs", options).state()
    assert build("pairs", options).state() == before
    link.unlink()
    link.symlink_to(tmp_path / "store1")
    assert build("pairs", options).state() != before


def test_heic_is_read_where_a_plugin_is_installed(tmp_path):
    """A stand-in for `pillow-heif`, in a process of its own: it registers with Pillow for good."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    accept = lambda prefix: prefix[4:12] == b'ftypheic'\n"
        "    Image.register_open('HEIF', lambda file, name: Image.new('L', (4, 3), 77), accept)\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(9))
    program = (
        f"import sys; sys.path[:0] = {[str(tmp_path), *sys.path]}\n"
        "from iiae_cli.data import names, pictures\n"
        f"(path,) = names.find_pictures([{str(tmp_path)!r}])\n"
        "print(pictures.decode(path, 1).tolist())"
    )
    shown = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert shown == f"{[[[77]] * 4] * 3}\n"


def test_folders_that_cannot_be_entered_are_counted(tmp_path, monkeypatch):
    entries, closed = Path.iterdir, touch(tmp_path / "closed" / "b.png").parent

    def iterdir(folder):
        if folder == closed:
            raise PermissionError(folder)
        return entries(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert pictures_in(tmp_path) == []
    assert SEEN.take()["left_out"] == {"unreadable folder": 1}


def test_files_named_outright_keep_their_order_and_any_suffix(tmp_path):
    second, first = touch(tmp_path / "z.dat"), touch(tmp_path / "a.png")
    missing = tmp_path / "missing.png"
    assert find_pictures([str(second), str(missing), str(first)]) == [second, missing, first]
    error = refusal(find_pictures, [str(touch(tmp_path / "empty" / "readme.md").parent)])
    assert f"{tmp_path / 'empty'} holds no pictures" in error.message and ".png" in error.hint
    assert "does not exist" in refusal(find_pictures, [str(tmp_path / "none.png")]).message


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "nul", "paths"),
    [
        (b"a.png\nmy pictures/b c.png\n\nd.png", False, ["a.png", "my pictures/b c.png", "d.png"]),
        (b"a.png\r\nb c.png\r\n\r\n \r\n", False, ["a.png", "b c.png"]),
        (b"\xef\xbb\xbfa.png\r\nb.png", False, ["a.png", "b.png"]),
        ("\ufeffä.png\r\nb.png\r\n".encode("utf-16-le"), False, ["ä.png", "b.png"]),
        (b"a\nb.png\0c.png\0", True, ["a\nb.png", "c.png"]),
        (b"caf\xe9.png\n", False, [os.fsdecode(b"caf\xe9.png")]),  # no UTF-8
    ],
)
def test_a_dash_reads_paths_from_standard_input(monkeypatch, content, nul, paths):
    standard_input(monkeypatch, content)
    wanted = ["first.png", *paths, "last.png"]
    assert expand_inputs(["first.png", "-", "last.png"], nul=nul) == wanted


@pytest.mark.parametrize("nul", [False, True])
def test_no_paths_at_all_are_refused(monkeypatch, nul):
    standard_input(monkeypatch, b"\0" if nul else b"\n")
    assert "no input paths" in refusal(expand_inputs, ["-"], nul=nul).message
    assert "no input paths" in refusal(expand_inputs, []).message


def test_at_most_the_next_item_is_read_ahead():
    reads = []
    items = ahead(lambda item: reads.append(item) or item, range(9))
    assert [next(items) for _ in range(3)] == [0, 1, 2] and len(reads) <= 4
    items.close()
