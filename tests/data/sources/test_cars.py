"""Cars from MATLAB files of both formats, in the archive's layout."""

import tarfile

import h5py
import numpy as np
import pytest
from helpers import built, refusal
from scipy.io import savemat

from iiae_cli.data.datafile import DataFile
from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources.cars import SHAPE, read_mat
from iiae_cli.data.sources.plan import PrepareOptions


def im_of(number):
    """A car whose every view tells car, yaw and pitch, and its row, by its three channels."""
    im = np.zeros(SHAPE, np.uint8)
    im[:, :, 0] = number
    im[:, :, 1] = np.arange(24)[:, None] * 4 + np.arange(4)
    im[:, :, 2] = np.arange(128).reshape(128, 1, 1, 1)  # down the picture, not across it
    return im


def save_v5(path, im):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"im": im, "mask": np.ones((8, 8), np.uint8)}, do_compression=True)
    return path


def save_v73(path, im):
    """As MATLAB does: a header of 512 bytes, then HDF5 with the axes reversed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("im", data=im.T, compression="gzip")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def file_of(folder, number):
    return folder / f"car_{number:03d}_mesh.mat"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Cars 2, 191 (train), 192 and 199 (test), as nips2015-analogy-data.tar.gz unpacks."""
    top = tmp_path_factory.mktemp("analogy")
    folder = top / "data" / "cars"
    for number, save in ((2, save_v5), (191, save_v73), (192, save_v73), (199, save_v5)):
        save(file_of(folder, number), im_of(number))
    (folder / "list.txt").write_text("car_002_mesh\n191\ncar_192_mesh.mat\r\ncar_199_mesh\n")
    (folder / "._car_003_mesh.mat").write_bytes(b"a Mac's")
    (top / "data" / "sprites").mkdir()
    return top


def prepared(source, **options):
    return built("cars", PrepareOptions(source=source, **options))


@pytest.fixture(scope="module")
def cars(archive):
    made = prepared(archive)
    assert made.skipped == []
    return made.splits


def test_every_picture_is_stored_once_and_every_pair_is_there(cars):
    assert list(cars) == ["train", "test"]
    for split in cars.values():
        assert split.x.rows.shape == (8, 128, 128, 3) and split.x.rows.dtype == np.uint8
        assert split.y.rows.shape == (184, 128, 128, 3) and split.pair_count == 184
        assert sorted(split.pairs[:, 1]) == list(range(184))  # every y once
        assert np.bincount(split.pairs[:, 0]).tolist() == [23] * 8  # every x with all its yaws
    assert sorted(set(cars["train"].x.labels)) == ["car_002", "car_191"]
    assert sorted(set(cars["test"].y.labels)) == ["car_192", "car_199"]


def test_a_pair_is_one_car_at_one_pitch_frontal_and_turned(cars):
    for name, split in cars.items():
        for pair, (row_x, row_y) in enumerate(split.pairs):
            number, yaw, pitch = (
                int(split.factors[factor][pair]) for factor in ("class", "yaw", "pitch")
            )
            assert 1 <= yaw <= 23 and 0 <= pitch <= 3
            x, y = split.x.rows[row_x], split.y.rows[row_y]
            assert (x[0, 0] == [number, pitch, 0]).all()
            assert (y[5, 9] == [number, yaw * 4 + pitch, 5]).all()
            assert split.x.labels[row_x] == split.y.labels[row_y] == f"car_{number:03d}"
            assert split.x.ids[row_x] == f"{name}/car_{number:03d}/yaw00-pitch{pitch}"
            assert split.y.ids[row_y] == f"{name}/car_{number:03d}/yaw{yaw:02d}-pitch{pitch}"


def test_limit_counts_pairs_and_image_size_is_that_of_the_stored_pictures(archive, cars):
    made = prepared(archive / "data" / "cars", limit=93, image_size=50).splits
    for name, split in made.items():
        assert split.pair_count == len(split.y) == len(split.factors["yaw"]) == 93
        assert len(split.x) == len(set(split.pairs[:, 0])) == len(split.x.ids)
        wanted = resize_pictures(cars[name].y.rows[:93], 50)
        np.testing.assert_array_equal(split.take_pairs(np.arange(93)).y.rows, wanted)


def test_the_list_decides_which_cars_there_are_and_others_are_named(tmp_path):
    for number in (5, 7, 193, 200):
        save_v5(file_of(tmp_path, number), im_of(number))
    (tmp_path / "list.txt").write_text("7\ncar_193_mesh\ncar_006_mesh\n")
    made = prepared(tmp_path, image_size=16)
    assert {name: set(split.x.labels) for name, split in made.splits.items()} == {
        "train": {"car_007"},
        "test": {"car_193"},
    }
    assert made.skipped == [
        f"{file_of(tmp_path, 5)}: is not in list.txt",
        f"{file_of(tmp_path, 200)}: is not a car from 1 to 199",
        f"{file_of(tmp_path, 6)}: does not exist",
    ]
    (tmp_path / "list.txt").write_text("no number here\n")
    made = prepared(tmp_path, image_size=16)
    assert set(made.splits["train"].x.labels) == {"car_005", "car_007"}
    assert made.skipped == [f"{file_of(tmp_path, 200)}: is not a car from 1 to 199"]


# ---- damage


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_a_damaged_or_other_array_is_told(tmp_path, save):
    def why(path):
        with pytest.raises(PictureError) as caught:
            read_mat(path)
        return caught.value.reason

    im = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    path = save(tmp_path / "a.mat", im)
    np.testing.assert_array_equal(read_mat(path), im)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 700, 130, 0):
        path.write_bytes(whole[:length])
        assert why(path) == "is not a readable MATLAB file"
    for name, other in (("im", np.zeros((4, 4), np.uint8)), ("im", np.zeros(SHAPE[2:])), ("a", im)):
        savemat(tmp_path / "b.mat", {name: other})
        assert "holds no im of uint8 (128, 128, 3, 24, 4)" in why(tmp_path / "b.mat")


def test_a_folder_without_cars_is_refused(tmp_path):
    error = refusal(prepared, tmp_path)
    assert error.message == f"{tmp_path} holds no car_*_mesh.mat" and "nips2015" in error.hint


# ---- the program


def test_the_program_reads_the_archive_and_says_what_it_left_out(iiae, archive, tmp_path):
    broken = file_of(tmp_path, 3)
    broken.write_bytes(b"broken")
    packed = tmp_path / "nips2015-analogy-data.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as file:
        file.add(archive, arcname=".", filter=lambda m: None if "list.txt" in m.name else m)
        file.add(broken, arcname="data/cars/car_003_mesh.mat")
    options = ("--image-size", 16, "-o", "cars.h5", "--pictures", "out", "--json")
    done = iiae("prepare", "cars", packed, *options)
    assert done.code == 3 and "car_003_mesh.mat: is not a readable MATLAB file" in done.err
    assert done.json["splits"] == {"train": 184, "valid": 0, "test": 184}
    file = DataFile(tmp_path / "cars.h5")
    assert len(file.info.attributes["source_sha256"]) == 64
    assert not list((tmp_path / "data").rglob("sprites"))
    # Its pictures come with a manifest that reads back.
    assert (tmp_path / "out" / "test" / "y" / "car_192" / "yaw02-pitch1.png").is_file()
    assert iiae("prepare", "pairs", "out/pairs.csv", "-o", "again.h5").code == 0
    once, again = file.split("test"), DataFile(tmp_path / "again.h5").split("test")
    taken, wanted = (split.take_pairs(np.arange(184)) for split in (again, once))
    for domain in "xy":
        np.testing.assert_array_equal(taken.side(domain).rows, wanted.side(domain).rows)
    assert again.x.labels == once.x.labels and again.y.labels == once.y.labels
