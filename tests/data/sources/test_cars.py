"""Cars from MATLAB files of both formats, in the archive's layout."""

import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import assembled
from scipy.io import savemat

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.datafile import DataFile
from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources.cars import read_cars, read_mat

SHAPE = (128, 128, 3, 24, 4)


def im_of(number):
    """A car whose every view is flat but for a ramp, and tells car, yaw and pitch by its three channels."""
    im = np.zeros(SHAPE, np.uint8)
    im[:, :, 0] = number
    im[:, :, 1] = np.arange(24)[:, None] * 4 + np.arange(4)
    im[:, :, 2] = np.arange(128).reshape(128, 1, 1, 1)  # down the picture, not across it
    return im


def save_v5(path, im, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"im": im, "mask": np.ones((8, 8), np.uint8)}, do_compression=True, **more)
    return path


def save_v73(path, im):
    """As MATLAB does: a header of 512 bytes, then HDF5 with the axes reversed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("im", data=im.T, compression="gzip").attrs["MATLAB_class"] = np.bytes_(
            "uint8"
        )
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def file_of(folder, number):
    return folder / f"car_{number:03d}_mesh.mat"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Cars 2, 191 (train), 192 and 199 (test), of both formats, as nips2015-analogy-data.tar.gz unpacks."""
    top = tmp_path_factory.mktemp("analogy")
    folder = top / "data" / "cars"
    for number, save in ((2, save_v5), (191, save_v73), (192, save_v73), (199, save_v5)):
        save(file_of(folder, number), im_of(number))
    (folder / "list.txt").write_text(
        "".join(f"car_{number:03d}_mesh\n" for number in (2, 191, 192, 199))
    )
    (folder / "._car_003_mesh.mat").write_bytes(b"a Mac's")
    (top / "data" / "sprites").mkdir()
    return top


def read(folder, **options):
    settings = {"image_size": None, "limit": None, "attributes": {}, **options}
    prepared = assembled(read_cars(folder, **settings))
    return prepared.splits, prepared.skipped


@pytest.fixture(scope="module")
def cars(archive):
    splits, skipped = read(archive)
    assert skipped == []
    return splits


def test_both_formats_read_the_same(tmp_path):
    im = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    v5, v73 = read_mat(save_v5(tmp_path / "a.mat", im)), read_mat(save_v73(tmp_path / "b.mat", im))
    for found in (v5, v73):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, im)


def test_every_picture_is_stored_once_and_every_pair_is_there(cars):
    assert list(cars) == ["train", "test"]
    for split in cars.values():
        assert split.x.rows.shape == (2 * 4, 128, 128, 3) and split.y.rows.shape == (
            2 * 92,
            128,
            128,
            3,
        )
        assert split.x.rows.dtype == split.y.rows.dtype == np.uint8
        assert split.pairs.shape == (2 * 92, 2) and split.pair_count == 184
        assert len(set(split.x.ids)) == 8 and len(set(split.y.ids)) == 184
        assert sorted(split.pairs[:, 1]) == list(range(184))  # every y once
        assert np.bincount(split.pairs[:, 0]).tolist() == [23] * 8  # every x with all its yaws


def test_a_pair_is_one_car_at_one_pitch_frontal_and_turned(cars):
    for split in cars.values():
        for pair, (row_x, row_y) in enumerate(split.pairs):
            number, yaw, pitch = (
                int(split.factors[name][pair]) for name in ("class", "yaw", "pitch")
            )
            assert 1 <= yaw <= 23 and 0 <= pitch <= 3
            x, y = split.x.rows[row_x], split.y.rows[row_y]
            assert (x[..., 0] == number).all() and (y[..., 0] == number).all()
            assert (x[..., 1] == pitch).all() and (y[..., 1] == yaw * 4 + pitch).all()
            assert (x[..., 2] == np.arange(128)[:, None]).all() and (
                y[..., 2] == np.arange(128)[:, None]
            ).all()
            assert split.x.labels[row_x] == split.y.labels[row_y] == f"car_{number:03d}"
            name = split.x.ids[0].partition("/")[0]
            assert split.x.ids[row_x] == f"{name}/car_{number:03d}/yaw00-pitch{pitch}"
            assert split.y.ids[row_y] == f"{name}/car_{number:03d}/yaw{yaw:02d}-pitch{pitch}"


def test_cars_are_divided_by_their_numbers(cars):
    assert sorted(set(cars["train"].x.labels)) == ["car_002", "car_191"]
    assert sorted(set(cars["test"].y.labels)) == ["car_192", "car_199"]


def test_any_folder_of_the_archive_will_do(archive, cars):
    for folder in (archive / "data", archive / "data" / "cars"):
        splits, skipped = read(folder, limit=92)
        assert skipped == []
        np.testing.assert_array_equal(splits["test"].y.rows, cars["test"].y.rows[:92])


@pytest.mark.parametrize("limit, cars_read", [(1, 1), (3, 1), (92, 1), (93, 2), (500, 2)])
def test_limit_counts_pairs_and_keeps_no_other_picture(archive, cars, limit, cars_read):
    splits, _ = read(archive, limit=limit)
    for name, split in splits.items():
        count = min(limit, 184)
        assert split.pair_count == count and len(split.y) == count == len(split.factors["yaw"])
        assert (
            len(split.x) == len(set(split.pairs[:, 0])) == len(split.x.ids) == len(split.x.labels)
        )
        assert len(set(split.y.labels)) == cars_read
        for found, whole in zip(
            split.pair_rows(np.arange(count)), cars[name].pair_rows(np.arange(count)), strict=True
        ):
            np.testing.assert_array_equal(found, whole)


def test_image_size_is_that_of_the_stored_pictures(archive, cars):
    splits, _ = read(archive, image_size=50, limit=5)
    assert splits["train"].x.rows.shape == (4, 50, 50, 3) and splits["train"].y.rows.shape == (
        5,
        50,
        50,
        3,
    )
    np.testing.assert_array_equal(
        splits["train"].y.rows, resize_pictures(cars["train"].y.rows[:5], 50)
    )


# ---- the list


def test_the_list_decides_which_cars_there_are(tmp_path):
    for number in (5, 7, 193):
        save_v5(file_of(tmp_path, number), im_of(number))
    (tmp_path / "list.txt").write_text("cars\n\n7\ncar_193_mesh.mat\r\n")
    splits, skipped = read(tmp_path, limit=200)
    assert (set(splits["train"].x.labels), set(splits["test"].x.labels)) == (
        {"car_007"},
        {"car_193"},
    )
    assert skipped == []
    (tmp_path / "list.txt").unlink()
    assert set(read(tmp_path)[0]["train"].x.labels) == {"car_005", "car_007"}
    (tmp_path / "list.txt").write_text("no number here\n")
    assert set(read(tmp_path)[0]["train"].x.labels) == {"car_005", "car_007"}


def test_a_listed_car_without_a_file_is_named(tmp_path):
    save_v5(file_of(tmp_path, 5), im_of(5))
    (tmp_path / "list.txt").write_text("car_005_mesh\ncar_006_mesh\n")
    splits, skipped = read(tmp_path)
    assert len(splits["train"].x) == 4
    assert skipped == [f"{file_of(tmp_path, 6)}: is in list.txt but does not exist"]


def test_a_car_of_an_unknown_number_is_named(tmp_path):
    for number in (5, 200):
        save_v5(file_of(tmp_path, number), im_of(number))
    (tmp_path / "car_x_mesh.mat").write_bytes(b"")
    splits, skipped = read(tmp_path)
    assert list(splits) == ["train"] and len(splits["train"].x) == 4
    assert sorted(skipped) == [
        f"{file_of(tmp_path, 200)}: is not a car from 1 to 199",
        f"{tmp_path / 'car_x_mesh.mat'}: is not a car from 1 to 199",
    ]


# ---- damage


def why(path):
    with pytest.raises(PictureError) as caught:
        read_mat(path)
    return caught.value.reason


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_a_truncated_or_foreign_file_is_no_matlab_file(tmp_path, save):
    path = save(
        tmp_path / "a.mat", np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    )
    whole = path.read_bytes()
    for length in (len(whole) // 2, 700, 130, 60, 0):
        path.write_bytes(whole[:length])
        assert why(path) == "is not a readable MATLAB file"
    path.write_bytes(b"<html>not found</html>" * 50)
    assert why(path) == "is not a readable MATLAB file"


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_an_im_of_another_kind_is_refused(tmp_path, save):
    assert "uint8 (4, 4), not" in why(save(tmp_path / "a.mat", np.zeros((4, 4), np.uint8)))
    assert "float64" in why(save(tmp_path / "b.mat", np.zeros(SHAPE[2:])))


def test_a_file_without_im_says_so(tmp_path):
    savemat(tmp_path / "a.mat", {"mask": np.ones(3)})
    assert why(tmp_path / "a.mat") == "holds no variable im"


def test_damaged_cars_are_named_and_left_out(tmp_path):
    for number in (3, 4, 9):
        save_v5(file_of(tmp_path, number), im_of(number))
    file_of(tmp_path, 3).write_bytes(b"broken")
    splits, skipped = read(tmp_path)
    assert skipped == [f"{file_of(tmp_path, 3)}: is not a readable MATLAB file"]
    assert (
        splits["train"].x.rows.shape[0] == 8
        and splits["train"].y.rows.shape[0] == splits["train"].pair_count == 184
    )
    assert (splits["train"].y.rows[..., 0] == np.repeat([4, 9], 92)[:, None, None]).all()


def test_a_folder_without_cars_is_refused(tmp_path):
    with pytest.raises(IiaeError) as caught:
        read(tmp_path)
    assert (
        caught.value.message == f"{tmp_path} holds no car_*_mesh.mat"
        and "nips2015" in caught.value.hint
    )
    file_of(tmp_path, 3).write_bytes(b"broken")
    with pytest.raises(IiaeError) as caught:
        read(tmp_path)
    assert (
        caught.value.message == f"{tmp_path} holds no readable car"
        and "car_003" in caught.value.hint
    )


# ---- the program


def test_the_program_prepares_cars_and_says_what_it_left_out(iiae, archive, tmp_path):
    source = tmp_path / "cars"
    source.mkdir()
    for path in (archive / "data" / "cars").glob("*.mat"):
        (source / path.name).symlink_to(path)
    file_of(source, 2).unlink()
    file_of(source, 2).write_bytes(b"broken")
    done = iiae(
        "prepare", "cars", source, "--image-size", 16, "--limit", 100, "-o", "cars.h5", "--json"
    )
    assert done.code == 3 and "car_002_mesh.mat: is not a readable MATLAB file" in done.err
    assert (
        done.json["splits"] == {"train": 92, "valid": 0, "test": 100}
        and len(done.json["skipped"]) == 1
    )
    file = DataFile(tmp_path / "cars.h5")
    assert file.info.pair_counts == {"train": 92, "valid": 0, "test": 100}
    test = file.split("test")
    assert (len(test.x), len(test.y), test.pair_count) == (8, 100, 100)
    assert test.pairs.dtype == np.int64 and file.split("valid").pairs.shape == (0, 2)
    assert file.info.attributes["source"] == str(source)


def test_pictures_of_cars_come_with_a_manifest_that_reads_back(iiae, archive, tmp_path):
    arguments = ("--image-size", 16, "--limit", 6, "-o", "cars.h5", "--pictures", "pictures")
    assert iiae("prepare", "cars", archive, *arguments).code == 0
    assert (tmp_path / "pictures" / "test" / "y" / "car_192" / "yaw02-pitch1.png").is_file()
    assert iiae("prepare", "pairs", "pictures/pairs.csv", "-o", "again.h5").code == 0
    for name in ("train", "test"):
        once, again = (DataFile(tmp_path / f"{one}.h5").split(name) for one in ("cars", "again"))
        for found, wanted in zip(
            again.pair_rows(np.arange(6)), once.pair_rows(np.arange(6)), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
        assert (len(again.x), len(again.y)) == (4, 6)
        assert (again.x.labels, again.y.labels) == (once.x.labels, once.y.labels)


def test_the_program_says_that_it_needs_a_source(iiae, tmp_path):
    error, hint = iiae("prepare", "cars").error()
    assert error == "error: the source of cars was not named" and "iiae prepare cars SOURCE" in hint
    error, _ = iiae("prepare", "cars", "none").error()
    assert error == "error: none does not exist"


def test_the_original_archive_is_read_as_it_comes(iiae, archive, tmp_path):
    with tarfile.open(tmp_path / "nips2015-analogy-data.tar.gz", "w:gz", compresslevel=1) as file:
        file.add(archive, arcname=".")
    outcome = iiae(
        "prepare", "cars", tmp_path / "nips2015-analogy-data.tar.gz", "--image-size", 32, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["splits"] == {"train": 184, "valid": 0, "test": 184}
    assert len(DataFile(Path(outcome.json["path"])).info.attributes["source_sha256"]) == 64
    assert not any(path.name == "sprites" for path in Path("data").rglob("*"))
