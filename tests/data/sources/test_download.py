"""Archives: fetched from a server on this machine, unpacked, and refused where they mean harm."""

import hashlib
import http.server
import io
import stat
import tarfile
import threading
import zipfile

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.sources.download import (
    ARCHIVES,
    MARKER,
    Archive,
    archive_of,
    fetch,
    find_folder,
    unpack,
)

BODY = bytes(range(256)) * 1000
MD5 = hashlib.md5(BODY).hexdigest()
FILES = {"set/train/1.txt": b"one", "set/train/2.txt": b"two" * 100_000, "set/ünï→.txt": b""}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with `server.answers[PATH]`: a status, or the body and the length that it claims."""

    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path, 404)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        body, length = answer if isinstance(answer, tuple) else (answer, len(answer))
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.asked, made.answers = True, [], {}
    made.root = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def published(server, *paths, **more):
    return Archive("set.tar.gz", tuple(server.root + path for path in paths), **more)


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


def zip_of(path, files=FILES, mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, body, zipfile.ZIP_DEFLATED)
    return path


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def refusal(call, *arguments, **keywords):
    with pytest.raises(IiaeError) as caught:
        call(*arguments, **keywords)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "set.tar.gz"


# ---- fetching


@pytest.mark.parametrize("md5", [None, MD5])
def test_a_file_comes_from_the_first_mirror_that_has_it_and_only_once(server, path, md5):
    server.answers["/b"] = BODY
    archive = published(server, "/a", "/b", md5=md5)
    assert fetch(archive, path) == f"{server.root}/b" and path.read_bytes() == BODY
    fetch(archive, path)
    assert server.asked == ["/a", "/b"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "bounds", "said"),
    [
        (404, {}, "404"),
        ((BODY, len(BODY) + 5), {}, "5 more expected"),
        (BODY[:-1], {"md5": MD5}, "does not match the known hash"),
        (BODY, {"max_bytes": 1000}, "larger than the 1000 bytes"),
        ((BODY, None), {"max_bytes": 1000}, "larger than the 1000 bytes"),
    ],
)
def test_a_file_that_is_not_whole_and_right_is_not_kept(server, path, answer, bounds, said):
    server.answers["/a"] = answer
    error = refusal(fetch, published(server, "/a", **bounds), path)
    assert f"{server.root}/a: " in error.message and said in error.message
    assert "SOURCE" in error.hint and not list(path.parent.glob("*"))


def test_when_every_mirror_fails_each_reason_is_named(server, path):
    server.answers |= {"/b": 403}
    closed = "http://127.0.0.1:1/x"
    archive = Archive("set.tar.gz", (f"{server.root}/a", f"{server.root}/b", closed))
    message = refusal(fetch, archive, path).message
    assert all(text in message for text in ("a: 404", "b: 403", f"{closed}: "))


def test_a_download_is_unpacked_described_and_then_reused(server, tmp_path, monkeypatch):
    body = tar_of(tmp_path / "set").read_bytes()
    server.answers["/a"] = body
    archive = published(server, "/a", select=lambda name: "train" in name)
    monkeypatch.setitem(ARCHIVES, "toy", archive)
    folder, attributes = archive_of("toy", None, True, tmp_path / "d")
    assert folder == tmp_path / "d" / "set" and set(tree(folder)) == set(list(FILES)[:2])
    sha256 = hashlib.sha256(body).hexdigest()
    assert attributes == {"source": f"{server.root}/a", "source_sha256": sha256}
    server.answers.clear()
    again = archive_of("toy", None, True, tmp_path / "d")
    assert again == (folder, {"source": "set.tar.gz", "source_sha256": sha256})
    mine = tar_of(tmp_path / "mine.v2.TGZ")
    assert archive_of("toy", mine, True, tmp_path / "d")[0] == tmp_path / "d" / "mine.v2"
    assert archive_of("toy", tmp_path, True, tmp_path / "d") == (
        tmp_path,
        {"source": str(tmp_path)},
    )


@pytest.mark.parametrize("name", ["facades", "maps", "cars", "sketchy", "classes"])
def test_a_source_that_was_not_named_is_asked_for(tmp_path, name):
    error = refusal(archive_of, name, None, False, tmp_path)
    assert error.message == f"the source of {name} was not named"
    assert f"iiae prepare {name} SOURCE" in error.hint
    assert (f"iiae prepare {name} --download" in error.hint) == (name in ARCHIVES)
    assert "does not exist" in refusal(archive_of, name, tmp_path / "none", True, tmp_path).message


def test_a_set_without_an_address_says_where_people_find_it(tmp_path):
    error = refusal(archive_of, "sketchy", None, True, tmp_path)
    assert "cannot be downloaded" in error.message and "sketchy.eye.gatech.edu" in error.hint


def test_of_the_cars_archive_only_the_cars_are_wanted():
    wanted = ARCHIVES["cars"].select
    names = ("data/cars/list.txt", "data/cars/car_001_mesh.mat", "car_001_mesh.mat", "x/list.txt")
    assert all(map(wanted, names))
    assert not any(map(wanted, ("data/sprites/sprites_1.mat", "data/shapes48.mat", "data/cars")))


# ---- unpacking


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_an_archive_is_unpacked_whatever_its_name(tmp_path, mode):
    make = zip_of if mode == "zip" else lambda path: tar_of(path, mode=mode)
    path, target = make(tmp_path / "archive"), tmp_path / "deep" / "set"
    sha256 = unpack(path, target, max_bytes=10**6)
    assert tree(target) == FILES and sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "set" / "train" / "1.txt").write_bytes(b"kept")
    unpack(path, target, max_bytes=10**6)
    assert tree(target)["set/train/1.txt"] == b"kept"


def test_a_target_of_another_origin_is_named_and_left_alone(tmp_path):
    target = tmp_path / "set"
    unpack(tar_of(tmp_path / "a"), target, max_bytes=10**6)
    other = tar_of(tmp_path / "b", {"x": b"1"})
    error = refusal(unpack, other, target, max_bytes=10**6)
    assert "unpacked from a (SHA-256" in error.message and str(target) in error.hint
    (target / MARKER).write_text("[]")
    assert "nothing that iiae knows" in refusal(unpack, other, target, max_bytes=10**6).message
    assert tree(target) == FILES


def encrypted(path):
    raw = bytearray(zip_of(path).read_bytes())
    raw[6] |= 1
    raw[raw.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)


def cut(make, keep):
    def do(path):
        raw = make(path).read_bytes()
        path.write_bytes(raw[: keep(len(raw))])

    return do


def link(kind):
    fields = {"type": kind, "linkname": "../../outside"}
    return lambda path: tar(path, [("link", b"", fields), ("link/evil", b"x", {})])


HOSTILE = {
    **{
        f"{make.__name__} {name}": (lambda path, m=make, n=name: m(path, {"a": b"", n: b"x"}), said)
        for make in (tar_of, zip_of)
        for name, said in dict.fromkeys(
            ("../evil", "a/../../evil", "/tmp/iiae-evil", "..\\evil", "c:/evil"),
            "leaves its folder",
        ).items()
    },
    "symbolic link": (link(tarfile.SYMTYPE), "no plain file"),
    "hard link": (link(tarfile.LNKTYPE), "no plain file"),
    "device": (lambda path: tar(path, [("null", b"", {"type": tarfile.CHRTYPE})]), "no plain file"),
    "link in a zip": (lambda path: zip_of(path, mode=stat.S_IFLNK | 0o777), "no plain file"),
    "tar bomb": (lambda path: tar_of(path, {"a": bytes(2 * 10**6)}), "more than the 1000000 bytes"),
    "zip bomb": (lambda path: zip_of(path, {"a": bytes(2 * 10**6)}), "more than the 1000000 bytes"),
    "many files": (
        lambda path: tar_of(path, {str(number): b"" for number in range(2000)}),
        "more than the 1000000 bytes",
    ),
    "cut tar.gz": (cut(tar_of, lambda size: size // 2), "is damaged"),
    "tar without an end": (cut(lambda path: tar_of(path, mode="w"), lambda _: 1024), "no end"),
    "cut zip": (cut(zip_of, lambda size: size - 30), "neither a tar nor a zip"),
    "web page": (lambda path: path.write_bytes(b"<html>not found</html>"), "neither a tar nor"),
    "encrypted": (encrypted, "password"),
    "empty": (lambda path: zip_of(path, {}), "none of the files looked for"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_archive_is_refused_and_nothing_is_left(tmp_path, case):
    make, said = HOSTILE[case]
    make(tmp_path / "archive")
    target = tmp_path / "made" / "set"
    error = refusal(unpack, tmp_path / "archive", target, max_bytes=10**6)
    assert said in error.message and str(tmp_path / "archive") in error.message
    assert not list(target.parent.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "made"}


def test_what_is_not_selected_may_be_anything_that_stays_inside(tmp_path):
    symbolic = {"type": tarfile.SYMTYPE, "linkname": "/"}
    path = tar(tmp_path / "a", [("other/link", b"", symbolic), ("set/a", b"abc", {})])
    unpack(path, tmp_path / "set", max_bytes=1000, select=lambda name: name.startswith("set/"))
    assert tree(tmp_path / "set") == {"set/a": b"abc"}


def test_the_shallowest_folder_is_found(tmp_path):
    for name in ("z/train", "b/c/train", "a/c/train", "y/train"):
        (tmp_path / name).mkdir(parents=True)
    assert find_folder(tmp_path, "train") == tmp_path / "y"
    assert find_folder(tmp_path / "z", "train") == tmp_path / "z"
    assert find_folder(tmp_path, "test") is None
