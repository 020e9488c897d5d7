"""The downloader against a server on this machine that drops, lies, delays and refuses."""

import errno
import hashlib
import http.server
import json
import os
import threading
import time

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.sources import downloads
from iiae_cli.data.sources.downloads import fetch

BODY = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
ETAG = '"v1"'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.log.append((self.path, dict(self.headers)))
        self.server.paths[self.path.lstrip("/")](self)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.block_on_close = True, False
    made.log, made.paths = [], {}
    made.root = f"http://127.0.0.1:{made.server_address[1]}/"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "set.tar.gz"


def serve(
    body=BODY,
    *,
    drop_after=None,
    drops=None,
    ranges=True,
    etag=ETAG,
    declared=None,
    kind="application/x-gzip",
):
    """A file on the server.

    `drop_after` bytes of each answer the connection closes, for `drops` answers (None: always); `declared` is the
    length that it claims; without `ranges` it always answers with the whole.
    """
    left = [drops]

    def answer(handler):
        wanted, first = handler.headers.get("Range"), 0
        condition = handler.headers.get("If-Range")
        total = len(body) if declared is None else declared
        if wanted and ranges and condition in (None, etag):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            handler.send_response(200)
        if total >= 0:
            handler.send_header("Content-Length", str(total - first))
        handler.send_header("Content-Type", kind)
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        rest = body[first:]
        if drop_after is not None and left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            rest = rest[:drop_after]
        handler.wfile.write(rest)

    return answer


def status(*codes, then=None):
    """Refuse with each code in turn, the last one for ever, or answer `then`."""
    left = list(codes)

    def answer(handler):
        if not left and then:
            then(handler)
            return
        handler.send_error(left.pop(0) if len(left) > 1 or then else left[0])

    return answer


def got(server, path, *names, **options):
    options = {"sleep": lambda seconds: None, "retries": 2, **options}
    return fetch([server.root + name for name in names or ("a",)], path, **options)


def refused(server, path, *names, **options):
    with pytest.raises(IiaeError) as caught:
        got(server, path, *names, **options)
    assert "\n" not in caught.value.message and caught.value.hint
    assert not path.exists()
    return caught.value


def left_in(path):
    return sorted(one.name for one in path.parent.iterdir())


def ranges_asked(server):
    return [headers.get("Range") for _, headers in server.log]


def half_done(path, body=BODY[:1000], **origin):
    """A part that an earlier run left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".part").write_bytes(body)
    if origin:
        path.with_name(path.name + ".part.json").write_text(
            json.dumps({"validator": ETAG, "total": len(BODY), **origin})
        )


# ---- a server that behaves


@pytest.mark.parametrize(
    "expected", [{}, {"sha256": SHA256}, {"sha256": SHA256.upper()}, {"md5": MD5}]
)
def test_a_file_is_fetched_verified_and_moved_in(server, path, expected):
    server.paths["a"] = serve()
    fetched = got(server, path, **expected)
    assert (fetched.path, fetched.sha256, fetched.url) == (path, SHA256, server.root + "a")
    assert path.read_bytes() == BODY and left_in(path) == [path.name]
    assert server.log[0][1]["User-Agent"].startswith("iiae/")


def test_what_is_here_already_is_verified_without_the_network(server, path):
    path.parent.mkdir()
    path.write_bytes(BODY)
    assert got(server, path, sha256=SHA256).url is None
    assert got(server, path).sha256 == SHA256
    assert server.log == []
    path.write_bytes(BODY[:-1])
    with pytest.raises(IiaeError) as caught:
        got(server, path, md5=MD5)
    assert (
        f"MD5 expected {MD5}, found " in caught.value.message and str(path) in caught.value.message
    )
    assert "delete it" in caught.value.hint and path.read_bytes() == BODY[:-1]


def test_redirects_are_followed_but_not_to_files(server, path, tmp_path):
    def to(place):
        def answer(handler):
            handler.send_response(302)
            handler.send_header("Location", place)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer

    (tmp_path / "secret").write_bytes(BODY)
    server.paths.update(
        a=to("/b"), b=serve(), c=to((tmp_path / "secret").as_uri()), d=to("ftp://127.0.0.1/x")
    )
    refused(server, path, "c", "d")
    assert got(server, path).sha256 == SHA256


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "data:,x", "/etc/passwd"])
def test_only_http_and_https_are_asked(path, url):
    with pytest.raises(IiaeError, match="not an http or https address"):
        fetch([url], path)


def test_the_proxy_of_the_environment_is_asked(server, path, monkeypatch):
    server.paths["http://no.such.host.invalid/file"] = serve()
    monkeypatch.setenv("http_proxy", server.root)
    assert fetch(["http://no.such.host.invalid/file"], path).sha256 == SHA256
    assert server.log[0][0] == "http://no.such.host.invalid/file"


def test_progress_is_reported_up_to_the_whole_size(server, path):
    server.paths["a"] = serve(drop_after=100_000, drops=2)
    seen = []
    got(server, path, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)


# ---- connections that break


def test_a_dropped_transfer_goes_on_where_it_stopped(server, path):
    server.paths["a"] = serve(drop_after=70_000)
    pauses = []
    assert got(server, path, sleep=pauses.append, retries=0).sha256 == SHA256
    assert ranges_asked(server) == [None, *(f"bytes={70_000 * n}-" for n in (1, 2, 3, 4))]
    assert all(headers["If-Range"] == ETAG for _, headers in server.log[1:])
    assert pauses == [1.0] * 4  # each try got further, so none counts against the mirror


def test_a_server_without_ranges_starts_again(server, path):
    server.paths["a"] = serve(drop_after=70_000, drops=2, ranges=False)
    assert got(server, path).sha256 == SHA256
    assert path.read_bytes() == BODY and len(server.log) == 3


def test_tries_that_get_no_further_are_bounded_and_pause_longer_each_time(server, path):
    server.paths["a"] = serve(drop_after=70_000, ranges=False)
    pauses = []
    error = refused(server, path, sleep=pauses.append, retries=3)
    assert (
        f"the connection closed after 70000 of {len(BODY)} bytes, 4 times in a row" in error.message
    )
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert left_in(path) == [f"{path.name}.part", f"{path.name}.part.json"]


def test_without_validator_or_checksum_nothing_is_pieced_together(server, path):
    server.paths["a"] = serve(drop_after=70_000, drops=1, etag=None)
    assert got(server, path).sha256 == SHA256
    assert ranges_asked(server) == [None, None]


def test_a_weak_etag_is_no_validator(server, path):
    server.paths["a"] = serve(drop_after=70_000, drops=1, etag='W/"v1"')
    assert got(server, path).sha256 == SHA256
    assert ranges_asked(server) == [None, None]


def test_a_slow_server_counts_as_dropped(server, path):
    released = threading.Event()

    def hang(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"12345")
        released.wait(5)

    server.paths.update(a=hang, b=serve())
    begun = time.monotonic()
    try:
        assert got(server, path, "a", "b", timeout=0.1, retries=1).sha256 == SHA256
    finally:
        released.set()
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("code", [500, 503, 429])
def test_an_overloaded_server_is_asked_again(server, path, code):
    server.paths["a"] = status(code, code, then=serve())
    assert got(server, path).sha256 == SHA256
    server.paths["b"] = status(code)
    path.unlink()
    assert f"HTTP {code}" in refused(server, path, "b").message
    assert len([one for one, _ in server.log if one == "/b"]) == 3


def test_a_missing_file_or_host_is_asked_for_once_and_the_next_mirror_serves(server, path):
    server.paths.update(a=status(404), b=serve())
    closed = "http://127.0.0.1:1/x"
    fetched = fetch(
        [server.root + "a", closed, server.root + "b"],
        path,
        sleep=lambda seconds: pytest.fail("waited"),
    )
    assert fetched.url == server.root + "b" and [one for one, _ in server.log] == ["/a", "/b"]


def test_when_every_mirror_fails_all_reasons_are_named(server, path):
    server.paths.update(a=status(404), b=serve(b"other"), c=status(403))
    error = refused(server, path, "a", "b", "c", sha256=SHA256)
    assert error.message.startswith("set.tar.gz could not be downloaded (")
    found = hashlib.sha256(b"other").hexdigest()
    for reason in ("a: HTTP 404", f"b: SHA-256 expected {SHA256}, found {found}", "c: HTTP 403"):
        assert server.root + reason in error.message
    assert "set.tar.gz elsewhere" in error.hint and "SOURCE" in error.hint
    assert left_in(path) == []


# ---- parts of an earlier run


def test_an_earlier_part_of_the_same_file_is_completed(server, path):
    server.paths["a"] = serve()
    half_done(path, url=server.root + "a")
    assert got(server, path).sha256 == SHA256
    assert ranges_asked(server) == ["bytes=1000-"] and left_in(path) == [path.name]


def test_a_part_of_a_changed_file_is_thrown_away(server, path):
    server.paths["a"] = serve(etag='"v2"')
    half_done(path, b"old" * 300, url=server.root + "a")
    assert got(server, path).sha256 == SHA256
    assert len(server.log) == 1  # If-Range lets the server send the whole at once


def test_a_part_from_another_mirror_is_used_only_with_a_checksum(server, path):
    server.paths["a"] = serve()
    half_done(path, url="http://elsewhere/x")
    assert got(server, path).sha256 == SHA256 and ranges_asked(server) == [None]
    path.unlink()
    half_done(path, url="http://elsewhere/x")
    assert got(server, path, sha256=SHA256).sha256 == SHA256 and ranges_asked(server)[1:] == [
        "bytes=1000-"
    ]


def test_a_foreign_part_costs_the_mirror_nothing(server, path):
    server.paths["a"] = serve()
    half_done(path, b"x" * 1000)
    assert got(server, path, sha256=SHA256).sha256 == SHA256
    assert ranges_asked(server) == ["bytes=1000-", None]


def test_a_part_that_is_whole_already_is_moved_in(server, path):
    server.paths["a"] = serve()
    half_done(path, BODY, url=server.root + "a")
    assert got(server, path).sha256 == SHA256 and ranges_asked(server) == [f"bytes={len(BODY)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server, path):
    server.paths["a"] = serve()
    half_done(path, BODY + b"more", url=server.root + "a")
    assert got(server, path).sha256 == SHA256 and ranges_asked(server)[1:] == [None]


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"url": 1}', '{"url": "a", "validator": null, "total": 3, "b": 1}']
)
def test_a_damaged_note_is_as_none(server, path, note):
    server.paths["a"] = serve()
    half_done(path)
    path.with_name(path.name + ".part.json").write_text(note)
    assert got(server, path).sha256 == SHA256 and ranges_asked(server) == [None]


# ---- wrong bytes


def test_wrong_bytes_are_removed_and_the_next_mirror_tried(server, path):
    server.paths.update(a=serve(BODY[:-1] + b"?"), b=serve())
    assert got(server, path, "a", "b", sha256=SHA256).url == server.root + "b"
    assert [one for one, _ in server.log] == ["/a", "/b"] and ranges_asked(server) == [None, None]
    assert path.read_bytes() == BODY


def test_wrong_bytes_in_pieces_are_asked_for_whole_once(server, path):
    server.paths["a"] = serve(b"?" + BODY[1:], drop_after=200_000)
    error = refused(server, path, sha256=SHA256)
    assert "found" in error.message and ranges_asked(server).count(None) == 2


@pytest.mark.parametrize("declared", [len(BODY) + 5, len(BODY) * 2])
def test_a_length_that_never_comes_is_an_error(server, path, declared):
    server.paths["a"] = serve(declared=declared)
    refused(server, path)
    server.paths["b"] = serve(declared=declared, ranges=False)
    assert f"closed after {len(BODY)} of {declared} bytes" in refused(server, path, "b").message


def test_a_length_that_is_too_small_is_caught_by_the_checksum(server, path):
    server.paths["a"] = serve(declared=1000)
    assert "SHA-256 expected" in refused(server, path, sha256=SHA256).message


def test_a_file_of_unknown_size_is_taken(server, path, capsys):
    server.paths["a"] = serve(declared=-1)
    assert got(server, path).sha256 == SHA256
    assert "size unknown" in capsys.readouterr().err


def test_another_range_than_asked_for_is_not_used(server, path):
    def shifted(handler):
        if "Range" not in handler.headers:
            serve()(handler)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-{len(BODY) - 1}/{len(BODY)}")
        handler.send_header("Content-Length", str(len(BODY) - 5))
        handler.end_headers()
        handler.wfile.write(BODY[5:])

    server.paths["a"] = shifted
    half_done(path, url=server.root + "a")
    assert got(server, path).sha256 == SHA256 and path.read_bytes() == BODY


@pytest.mark.parametrize("declared", [None, -1])
def test_a_file_beyond_the_limit_is_refused_and_not_kept(server, path, declared):
    server.paths["a"] = serve(declared=declared)
    assert "larger than the 1000 bytes" in refused(server, path, max_bytes=1000).message
    assert not path.parent.exists() or left_in(path) == []


def test_a_web_page_is_not_an_archive(server, path):
    server.paths["a"] = serve(b"<html>moved</html>", kind="text/html; charset=utf-8")
    assert "answers with a web page" in refused(server, path).message


# ---- this machine's own trouble


def test_a_full_disk_is_said_and_the_part_stays(server, path, monkeypatch):
    server.paths["a"] = serve()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads.os, "fsync", full)
    assert f"no space left while writing {path}" in refused(server, path).message
    monkeypatch.undo()
    assert path.with_name(path.name + ".part").exists()
    assert got(server, path).sha256 == SHA256


def test_a_folder_in_the_way_is_said(server, path):
    path.mkdir(parents=True)
    with pytest.raises(IiaeError, match="cannot write"):
        got(server, path)
