"""Data sets by name; their archives, fetched from a server on this machine and unpacked."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from helpers import built, refusal

from iiae_cli.data.sources import registry
from iiae_cli.data.sources.plan import PrepareOptions
from iiae_cli.data.sources.registry import ARCHIVES, BUILDERS, MARKER, Archive, fetch, unpack

BODY = bytes(range(256)) * 1000
MD5 = hashlib.md5(BODY).hexdigest()
FILES = {"set/train/1.txt": b"one", "set/train/2.txt": b"two" * 100_000, "set/ünï→.txt": b""}


# ---- names


def test_an_unknown_set_is_refused_with_those_there_are(tmp_path):
    error = refusal(built, "mnist", PrepareOptions())
    assert error.message == "unknown data set 'mnist'"
    assert all(name in error.hint for name in BUILDERS)
    mine = refusal(built, str(tmp_path), PrepareOptions())
    assert f"iiae prepare pairs {tmp_path}" in mine.hint


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digits-cdcb", {"unseen_classes": "3"}, "--unseen-classes does not apply to"),
        ("cars", {"backbone": "vgg16"}, "--backbone… does not apply"),
        ("maps", {"side_by_side": True}, "--side-by-side does not apply"),
        ("classes", {"image_size": 32}, "--image-size does not apply"),
    ],
)
def test_options_of_other_sets_are_refused(name, options, said):
    assert said in refusal(built, name, PrepareOptions(**options)).message


@pytest.mark.parametrize("name", ["facades", "maps", "cars", "sketchy", "classes", "pairs"])
def test_a_source_that_was_not_named_is_asked_for(tmp_path, name):
    error = refusal(built, name, PrepareOptions())
    assert error.message == f"the source of {name} was not named"
    assert f"iiae prepare {name} SOURCE" in error.hint
    assert (f"iiae prepare {name} --download" in error.hint) == (name in ARCHIVES)
    assert ("sketchy.eye.gatech.edu" in error.hint) == (name == "sketchy")
    missing = PrepareOptions(source=tmp_path / "none", download=True)
    assert "does not exist" in refusal(built, name, missing).message


# ---- fetching


@dataclass
class Server:
    """A server of the files in a folder."""

    root: str
    folder: Path


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in "ab":
        (tmp_path / "www" / name).mkdir(parents=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{made.server_address[1]}", tmp_path / "www")
        made.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "set.tar.gz"


def published(server, *paths, **more):
    return Archive("set.tar.gz", tuple(server.root + path for path in paths), **more)


@pytest.mark.parametrize("md5", [None, MD5])
def test_a_file_comes_from_the_first_mirror_that_has_it_and_only_once(server, path, md5):
    (server.folder / "b" / "set.tar.gz").write_bytes(BODY)
    archive = published(server, "/a", "/b", md5=md5)
    assert fetch(archive, path) == f"{server.root}/b/set.tar.gz" and path.read_bytes() == BODY
    (server.folder / "b" / "set.tar.gz").unlink()
    fetch(archive, path)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_another_checksum_is_not_kept_and_every_mirrors_reason_is_named(server, path):
    (server.folder / "a" / "set.tar.gz").write_bytes(BODY[:-1])
    error = refusal(fetch, published(server, "/a", "/b", md5=MD5), path)
    assert f"{server.root}/a/set.tar.gz: " in error.message
    assert "not match the known hash" in error.message
    assert f"{server.root}/b/set.tar.gz: 404" in error.message
    assert "SOURCE" in error.hint and not list(path.parent.glob("*"))


def test_a_download_is_unpacked_described_and_then_reused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("IIAE_DATA", str(tmp_path))
    body = tar_of(tmp_path / "set").read_bytes()
    (server.folder / "a" / "set.tar.gz").write_bytes(body)
    monkeypatch.setitem(ARCHIVES, "toy", published(server, "/a", wanted="train"))
    options = PrepareOptions(download=True)
    folder, attributes = registry.source_of("toy", options)
    assert folder == tmp_path / "downloads" / "set" and set(tree(folder)) == set(list(FILES)[:2])
    sha256 = hashlib.sha256(body).hexdigest()
    assert attributes == {"source": f"{server.root}/a/set.tar.gz", "source_sha256": sha256}
    (server.folder / "a" / "set.tar.gz").unlink()
    assert registry.source_of("toy", options) == (folder, attributes)
    mine = PrepareOptions(source=tmp_path)
    assert registry.source_of("toy", mine) == (tmp_path, {"source": str(tmp_path)})


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
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_an_archive_is_unpacked_once_whatever_its_name(tmp_path, mode):
    make = zip_of if mode == "zip" else lambda path: tar_of(path, mode=mode)
    path, target = make(tmp_path / "archive"), tmp_path / "deep" / "set"
    sha256 = unpack(path, target)
    assert tree(target) == FILES and sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "set" / "train" / "1.txt").write_bytes(b"kept")
    unpack(path, target)
    assert tree(target)["set/train/1.txt"] == b"kept"
    other = tar_of(tmp_path / "other", {"x": b"1"})
    error = refusal(unpack, other, target)
    assert f"not unpacked from {other}" in error.message and str(target) in error.hint


def evil(kind, linkname="../../outside"):
    fields = {"type": kind, "linkname": linkname}
    return lambda path: tar(path, [("link", b"", fields), ("link/evil", b"x", {})])


def cut(make, keep):
    return lambda path: path.write_bytes((raw := make(path).read_bytes())[: keep(len(raw))])


HOSTILE = {
    "path outside": (lambda path: tar_of(path, {"a": b"", "../evil": b"x"}), "outside"),
    "symbolic link outside": (evil(tarfile.SYMTYPE), "outside"),
    "device": (evil(tarfile.CHRTYPE), "special file"),
    "tar bomb": (lambda path: tar_of(path, {"a": bytes(2 * 10**6)}), "more than 1000000 bytes"),
    "zip bomb": (lambda path: zip_of(path, {"a": bytes(2 * 10**6)}), "more than 1000000 bytes"),
    "tar.gz without its end": (cut(tar_of, lambda size: size - 6), "is damaged"),
    "cut zip": (cut(zip_of, lambda size: size - 30), "neither a tar nor a zip"),
    "web page": (lambda path: path.write_bytes(b"<html>not found</html>"), "neither a tar nor"),
    "empty": (lambda path: zip_of(path, {}), "none of the files looked for"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_archive_is_refused_and_nothing_is_left(tmp_path, monkeypatch, case):
    monkeypatch.setattr(registry, "MAX_BYTES", 10**6)
    make, said = HOSTILE[case]
    make(tmp_path / "archive")
    target = tmp_path / "made" / "set"
    error = refusal(unpack, tmp_path / "archive", target)
    assert said in error.message and str(tmp_path / "archive") in error.message
    assert not list(target.parent.glob("*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "made"}


def test_entries_of_a_zip_stay_inside_whatever_their_names(tmp_path):
    names = ("../evil", "a/../../evil", "/tmp/iiae-evil", "..\\evil", "x\\y.txt")
    unpack(zip_of(tmp_path / "a", dict.fromkeys(names, b"x")), tmp_path / "made" / "set")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "made"}
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["set"]
    assert (tmp_path / "made" / "set" / "x" / "y.txt").is_file()
