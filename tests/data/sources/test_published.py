"""Archives, fetched from a server on this machine and unpacked; Cars, from MATLAB files."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest
from helpers import built, refusal
from scipy.io import savemat

from iiae_cli.data.pictures import PictureError, resize_pictures
from iiae_cli.data.sources import published
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.preparation import source_of
from iiae_cli.data.sources.published import ARCHIVES, SHAPE, Archive, fetch, read_mat, unpack

BODY = bytes(range(256)) * 1000
MD5 = hashlib.md5(BODY).hexdigest()
FILES = {"set/train/1.txt": b"one", "set/train/2.txt": b"two" * 100_000, "set/ünï→.txt": b""}


# ---- fetching


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of the folder www, which has folders a and b."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in "ab":
        (tmp_path / "www" / name).mkdir(parents=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


def mirrored(server, **more):
    return Archive("set.tar.gz", (f"{server}/a", f"{server}/b"), **more)


def test_a_file_comes_from_the_first_mirror_that_has_it_whole_and_only_once(server, tmp_path):
    path, kept = tmp_path / "downloads" / "set.tar.gz", tmp_path / "www" / "b" / "set.tar.gz"
    (tmp_path / "www" / "a" / "set.tar.gz").write_bytes(BODY[:-1])
    error = refusal(fetch, mirrored(server, md5=MD5), path)
    assert f"{server}/a/set.tar.gz: " in error.message
    assert "not match the known hash" in error.message
    assert f"{server}/b/set.tar.gz: 404" in error.message
    assert "SOURCE" in error.hint and not list(path.parent.glob("*"))
    kept.write_bytes(BODY)
    assert fetch(mirrored(server, md5=MD5), path) == f"{server}/b/set.tar.gz"
    kept.unlink()
    fetch(mirrored(server, md5=MD5), path)
    assert path.read_bytes() == BODY and list(path.parent.iterdir()) == [path]


def test_a_download_is_unpacked_described_and_then_reused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("IIAE_DATA", str(tmp_path))
    packed = tar_of(tmp_path / "www" / "a" / "set.tar.gz")
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, "toy", mirrored(server, wanted="train"))
    options = PrepareOptions(download=True)
    folder, attributes = source_of("toy", options)
    assert folder.parent.parent == tmp_path / "downloads"  # in the archive's one folder
    assert set(tree(folder.parent)) == set(list(FILES)[:2])
    assert attributes == {"source": f"{server}/a/set.tar.gz", "source_sha256": sha256}
    packed.unlink()
    assert source_of("toy", options) == (folder, attributes)
    mine = PrepareOptions(source=tmp_path)
    assert source_of("toy", mine) == (tmp_path, {"source": str(tmp_path)})


# ---- unpacking


def tar(path, members, mode="w:gz"):
    """An archive of (name, body, fields of the header)."""
    with tarfile.open(path, mode) as file:
        for name, body, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info, io.BytesIO(body))
    return path


def tar_of(path, files=FILES, mode="w:gz"):
    return tar(path, [(name, body, {}) for name, body in files.items()], mode)


def zip_of(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in files.items():
            file.writestr(name, body)
    return path


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_an_archive_is_unpacked_once_whatever_its_name(tmp_path, mode):
    path, folder = tmp_path / "archive", tmp_path / "deep"
    zip_of(path) if mode == "zip" else tar_of(path, mode=mode)
    target, sha256 = unpack(path, folder)
    assert tree(target) == FILES and sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "set" / "train" / "1.txt").write_bytes(b"kept")
    assert unpack(path, folder) == (target, sha256)
    assert tree(target)["set/train/1.txt"] == b"kept"
    other, _ = unpack(tar_of(path, {"x": b"1"}), folder)  # another one of that name
    assert other != target and tree(other) == {"x": b"1"}


def evil(kind, linkname="../../outside"):
    fields = {"type": kind, "linkname": linkname}
    return lambda path: tar(path, [("link", b"", fields), ("link/evil", b"x", {})])


def cut(make, bytes_cut):
    return lambda path: path.write_bytes(make(path).read_bytes()[:-bytes_cut])


HOSTILE = {
    "path outside": (lambda path: tar_of(path, {"a": b"", "../evil": b"x"}), "outside"),
    "symbolic link outside": (evil(tarfile.SYMTYPE), "outside"),
    "device": (evil(tarfile.CHRTYPE), "special file"),
    "tar bomb": (lambda path: tar_of(path, {"a": bytes(2 * 10**6)}), "more than 1000000 bytes"),
    "zip bomb": (lambda path: zip_of(path, {"a": bytes(2 * 10**6)}), "more than 1000000 bytes"),
    "tar.gz without its end": (cut(tar_of, 6), "is damaged"),
    "cut zip": (cut(zip_of, 30), "neither a tar nor a zip"),
    "web page": (lambda path: path.write_bytes(b"<html>not found</html>"), "neither a tar nor"),
    "empty": (lambda path: zip_of(path, {}), "none of the files looked for"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_archive_is_refused_and_nothing_is_left(tmp_path, monkeypatch, case):
    monkeypatch.setattr(published, "MAX_BYTES", 10**6)
    make, said = HOSTILE[case]
    make(tmp_path / "archive")
    error = refusal(unpack, tmp_path / "archive", tmp_path / "made")
    assert said in error.message and str(tmp_path / "archive") in error.message
    assert not list((tmp_path / "made").glob("*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "made"}


def test_entries_of_a_zip_stay_inside_whatever_their_names(tmp_path):
    names = ("../evil", "a/../../evil", "/tmp/iiae-evil", "..\\evil", "x\\y.txt")
    target, _ = unpack(zip_of(tmp_path / "a", dict.fromkeys(names, b"x")), tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "made"}
    assert list((tmp_path / "made").iterdir()) == [target] and (target / "x" / "y.txt").is_file()


# ---- Cars


def im_of(number):
    """A car whose every view tells car, yaw and pitch, and its row, by its three channels."""
    im = np.zeros(SHAPE, np.uint8)
    im[:, :, 0] = number
    im[:, :, 1] = np.arange(24)[:, None] * 4 + np.arange(4)
    im[:, :, 2] = np.arange(128).reshape(128, 1, 1, 1)  # down the picture, not across it
    return im


def save_v5(folder, number, im=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"car_{number:03d}_mesh.mat"
    savemat(path, {"im": im_of(number) if im is None else im}, do_compression=True)
    return path


def save_v73(folder, number, im=None):
    """As MATLAB does: a header of 512 bytes, then HDF5 with the axes reversed."""
    path = folder / f"car_{number:03d}_mesh.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        im = im_of(number) if im is None else im
        file.create_dataset("im", data=im.T, compression="gzip")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Cars 2, 191 (train), 192 and 199 (test), as nips2015-analogy-data.tar.gz unpacks."""
    top = tmp_path_factory.mktemp("analogy")
    folder = top / "data" / "cars"
    for number, save in ((2, save_v5), (191, save_v73), (192, save_v73), (199, save_v5)):
        save(folder, number)
    (folder / "._car_003_mesh.mat").write_bytes(b"a Mac's")
    (top / "data" / "sprites").mkdir()
    return top


prepared = partial(built, "cars")


@pytest.fixture(scope="module")
def cars(archive):
    made = prepared(archive)
    assert made.skipped == []
    return made.splits


def test_a_pair_is_one_car_at_one_pitch_and_every_picture_is_stored_once(cars):
    assert list(cars) == ["train", "test"]
    for name, split in cars.items():
        assert (len(split.x), len(split.y)) == (8, 184) == (len({*split.x.ids}), split.pair_count)
        for pair, (row_x, row_y) in enumerate(split.pairs):
            factors = (split.factors[factor][pair] for factor in ("class", "yaw", "pitch"))
            number, yaw, pitch = map(int, factors)
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


def test_other_files_are_named(tmp_path):
    paths = {number: save_v5(tmp_path, number) for number in (7, 193, 200)}
    second, broken = save_v5(tmp_path / "again", 7), tmp_path / "car_003_mesh.mat"
    broken.write_bytes(b"broken")
    made = prepared(tmp_path, image_size=16)
    assert {name: set(split.x.labels) for name, split in made.splits.items()} == {
        "train": {"car_007"},
        "test": {"car_193"},
    }
    other = "is not one of the cars 1 to 199, or the second"
    assert made.skipped == [
        *(f"{path}: {other}" for path in (paths[200], second)),
        f"{broken}: is not a readable MATLAB file",
    ]


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_a_damaged_or_other_array_is_told(tmp_path, save):
    def why(path):
        with pytest.raises(PictureError) as caught:
            read_mat(path)
        return caught.value.reason

    im = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    path = save(tmp_path, 1, im)
    np.testing.assert_array_equal(read_mat(path), im)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 700, 130, 0):
        path.write_bytes(whole[:length])
        assert why(path) == "is not a readable MATLAB file"
    for other in (np.zeros((4, 4), np.uint8), np.zeros(SHAPE[2:])):
        assert "holds no im of uint8 (128, 128, 3, 24, 4)" in why(save(tmp_path, 1, other))
