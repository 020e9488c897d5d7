"""The table of published archives, and one of them fetched from a server on this machine."""

import hashlib
import http.server
import io
import tarfile
import threading
from functools import partial

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.sources import published as sources
from iiae_cli.data.sources.published import ARCHIVES, Archive, archive_of


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The folder of a server, which holds the archive of a set called `toy`."""
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "shelf"
    folder.mkdir()
    with tarfile.open(folder / "toy.tar.gz", mode="w:gz") as tar:
        for name in ("toy/train/1.txt", "toy/other/2.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "log_message", lambda *arguments: None
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/toy.tar.gz"
    monkeypatch.setitem(
        sources.ARCHIVES, "toy", Archive("toy.tar.gz", (url,), select=lambda name: "train" in name)
    )
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_set_is_fetched_unpacked_and_described_and_then_reused(shelf, tmp_path):
    sha256 = hashlib.sha256((shelf / "toy.tar.gz").read_bytes()).hexdigest()
    folder, attributes = archive_of("toy", None, True, tmp_path / "downloads")
    assert folder == tmp_path / "downloads" / "toy"
    assert (folder / "toy" / "train" / "1.txt").read_text() == "abc" and not (
        folder / "toy" / "other"
    ).exists()
    assert attributes == {"source": ARCHIVES["toy"].urls[0], "source_sha256": sha256}
    (shelf / "toy.tar.gz").unlink()
    again, attributes = archive_of("toy", None, True, tmp_path / "downloads")
    assert again == folder and attributes == {"source": "toy.tar.gz", "source_sha256": sha256}


def test_a_source_goes_before_a_download(shelf, tmp_path):
    mine = (shelf / "toy.tar.gz").rename(tmp_path / "mine.tar.gz")
    folder, attributes = archive_of("toy", mine, True, tmp_path / "downloads")
    assert folder == tmp_path / "downloads" / "mine"
    assert attributes == {
        "source": str(mine),
        "source_sha256": hashlib.sha256(mine.read_bytes()).hexdigest(),
    }
    assert archive_of("toy", tmp_path, True, tmp_path / "downloads") == (
        tmp_path,
        {"source": str(tmp_path)},
    )


def test_a_download_that_fails_names_the_set_and_the_way_out(shelf, tmp_path):
    (shelf / "toy.tar.gz").unlink()
    with pytest.raises(IiaeError) as caught:
        archive_of("toy", None, True, tmp_path / "downloads")
    assert (
        f"{ARCHIVES['toy'].urls[0]}: HTTP 404" in caught.value.message
        and "SOURCE" in caught.value.hint
    )


@pytest.mark.parametrize("name", ["facades", "maps", "cars", "sketchy", "classes"])
def test_a_source_that_was_not_named_is_asked_for(tmp_path, name):
    with pytest.raises(IiaeError) as caught:
        archive_of(name, None, False, tmp_path)
    assert caught.value.message == f"the source of {name} was not named"
    assert f"iiae prepare {name} SOURCE" in caught.value.hint
    assert (f"iiae prepare {name} --download" in caught.value.hint) == (name in ARCHIVES)


def test_a_set_without_an_address_says_where_people_find_it(tmp_path):
    with pytest.raises(IiaeError) as caught:
        archive_of("sketchy", None, True, tmp_path)
    assert (
        "cannot be downloaded" in caught.value.message
        and "sketchy.eye.gatech.edu" in caught.value.hint
    )


def test_of_the_cars_archive_only_the_cars_are_wanted():
    wanted = ARCHIVES["cars"].select
    assert all(
        map(
            wanted,
            ("data/cars/list.txt", "data/cars/car_001_mesh.mat", "car_001_mesh.mat", "x/list.txt"),
        )
    )
    assert not any(map(wanted, ("data/sprites/sprites_1.mat", "data/shapes48.mat", "data/cars")))


def test_the_table_is_sound():
    for archive in ARCHIVES.values():
        assert all(url.startswith("http") and url.endswith(archive.file) for url in archive.urls)
        assert archive.md5 is None or len(archive.md5) == 32
