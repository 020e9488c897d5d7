"""Fetching one file from the first mirror that has the right bytes.

Bytes are gathered in `NAME.part`, and renamed to `NAME` only when they are complete and match their checksum, so a file
called `NAME` is whole. `NAME.part.json` says where the part came from: a later run goes on where this one stopped, but
only where the result can be trusted. Either a checksum is known, or the same URL confirms by its validator (`If-Range`)
that the file there is still the one that the part was cut from.

The standard library does the talking: `urllib` honours the environment's proxies, and the opener below knows no schemes
but http and https, for redirects too.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from iiae_cli import __version__
from iiae_cli.common import console
from iiae_cli.common.errors import IiaeError
from iiae_cli.common.files import write_errors, writing
from iiae_cli.data.datafile import sha256_of
from iiae_cli.data.sources.http import (
    Dropped,
    MirrorError,
    content_range,
    length,
    opener,
    status_trouble,
    trouble,
    validator,
)

MAX_BYTES = 16 * 2**30
CHUNK = 1 << 20  # bytes
LONGEST_PAUSE = 30.0  # seconds

Report = Callable[[int, int | None], None]
"""Told the bytes that are here, and the file's size where the server says it."""


@dataclass(frozen=True)
class Fetched:
    """A whole file.

    Attributes:
        path: where it lies.
        sha256: its own, in hex.
        url: where it came from; None: it was here already.
    """

    path: Path
    sha256: str
    url: str | None


class _WrongBytes(MirrorError):
    """The file is complete and is another one."""


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    max_bytes: int = MAX_BYTES,
    timeout: float = 30.0,
    retries: int = 5,
    report: Report | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Fetch a file, or find it fetched.

    Args:
        urls: mirrors, tried in order; http or https.
        path: the file to make. Where it exists, it is verified and no network is used.
        sha256: expected, in hex; None: its publisher gives none, and the caller records the result's.
        md5: expected, in hex, where that is all that was published. It tells damage, not malice.
        max_bytes: the largest file taken.
        timeout: seconds without a byte after which a connection counts as dropped.
        retries: how often a mirror is asked again in a row without getting any further.
        report: told about progress instead of the console.
        sleep: waits between tries.

    Raises:
        IiaeError: no mirror gave the file; an existing file has another checksum; the disk is full.
    """
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise IiaeError(
                f"{url} is not an http or https address",
                "name one, or fetch the file and pass its path",
            )
    if path.exists():
        with write_errors(path):
            found = sha256_of(path)
        if wrong := _mismatch(path, found, sha256, md5):
            raise IiaeError(
                f"{path} is not the published file: {wrong}",
                "delete it and run the same command again",
            )
        return Fetched(path, found, None)
    download = _Download(path, sha256, md5, max_bytes, timeout, retries, report, sleep)
    reasons = []
    for url in urls:
        try:
            found = download.complete(url)
        except MirrorError as error:
            reasons.append(f"{url}: {error}")
            console.detail(reasons[-1])
            continue
        with write_errors(path):
            download.part.replace(path)
            download.note.unlink(missing_ok=True)
        return Fetched(path, found, url)
    raise IiaeError(
        f"{path.name} could not be downloaded ({'; '.join(reasons) or 'no mirror is known'})",
        f"run the same command again later, or fetch {path.name} elsewhere and pass it as SOURCE",
    )


@dataclass(frozen=True)
class _Origin:
    """Where a part came from.

    Attributes:
        url: the mirror asked.
        validator: strong ETag, else Last-Modified; None: the server gave neither.
        total: bytes of the whole file, where the server said so.
    """

    url: str
    validator: str | None
    total: int | None


@dataclass
class _Download:
    """One file being put together; `resumed` tells that its bytes came in several answers."""

    path: Path
    sha256: str | None
    md5: str | None
    max_bytes: int
    timeout: float
    retries: int
    report: Report | None
    sleep: Callable[[float], None]
    resumed: bool = False

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def complete(self, url: str) -> str:
        """Make the part whole and verified by this mirror; returns its SHA-256.

        Raises:
            MirrorError: it cannot be had here.
        """
        self.resumed = False
        joined_before = False
        failures, furthest = 0, self._size()
        while True:
            try:
                self._attempt(url)
                return self._verified()
            except _WrongBytes:
                # Bytes of several answers that do not fit together say nothing against the mirror: once more, whole.
                if not self.resumed or joined_before:
                    raise
                joined_before, self.resumed = True, False
            except Dropped as error:
                size = self._size()
                failures = 0 if size > furthest else failures + 1
                furthest = max(size, furthest)
                if failures > self.retries:
                    raise MirrorError(f"{error}, {failures} times in a row") from error
                console.say(f"{url}: {error}; trying again")
                self.sleep(min(LONGEST_PAUSE, 2.0**failures))

    def _verified(self) -> str:
        found = sha256_of(self.part)
        if wrong := _mismatch(self.part, found, self.sha256, self.md5):
            self._forget()
            raise _WrongBytes(wrong)
        return found

    def _attempt(self, url: str) -> None:
        """One request, one answer.

        Raises:
            Dropped: it broke off.
            MirrorError: asking again is of no use.
        """
        start, headers = self._resumable(url)
        try:
            response = opener().open(Request(url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            with error:
                if error.code == 416 and start:
                    self._past_the_end(start, error.headers)
                    return
            raise status_trouble(error.code, error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise trouble(error) from error
        with response:
            self._receive(url, response, start)

    def _resumable(self, url: str) -> tuple[int, dict[str, str]]:
        """How many bytes of the part to keep, and the headers that ask for the rest."""
        headers = {"User-Agent": f"iiae/{__version__}"}
        size, origin = self._size(), self._origin()
        confirmed = origin is not None and origin.url == url and origin.validator is not None
        if not size or not (confirmed or self.sha256 or self.md5):
            return 0, headers
        headers["Range"] = f"bytes={size}-"
        if origin is not None and confirmed:
            headers["If-Range"] = str(origin.validator)
        return size, headers

    def _past_the_end(self, start: int, headers: Message) -> None:
        """HTTP 416: the part is the whole file already, or has nothing to do with it."""
        origin = self._origin()
        total = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
        known = {int(total[1])} if total else set()
        if origin is not None and origin.total is not None:
            known.add(origin.total)
        self.resumed = True
        if known != {start} and not (not known and (self.sha256 or self.md5)):
            self._forget()
            raise Dropped(f"the file there ends before byte {start}")

    def _receive(self, url: str, response: Any, start: int) -> None:
        """Write an answer's body after the first `start` bytes of the part, or from the beginning."""
        headers: Message = response.headers
        if response.status == 206:
            first, total = content_range(headers)
            origin = self._origin()
            if first != start or (start and origin and origin.total not in (None, total)):
                self._forget()
                raise Dropped("the server sent another part than was asked for")
            self.resumed = self.resumed or start > 0
        elif response.status == 200:
            start, total = 0, length(headers)
            self.resumed = False
            if headers.get_content_type() == "text/html":
                raise MirrorError("answers with a web page instead of the file")
        else:
            raise MirrorError(f"HTTP {response.status} {response.reason}")
        self._refuse_larger(total)
        with write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with writing(self.note, sync=False) as temporary:
                temporary.write_text(json.dumps(asdict(_Origin(url, validator(headers), total))))
        size = self._copy(response, start, total)
        if total is not None and size != total:
            raise Dropped(f"the connection closed after {size} of {total} bytes")

    def _copy(self, response: Any, start: int, total: int | None) -> int:
        """The body into the part; returns the part's size."""
        size = start
        with ExitStack() as stack:
            report = self.report or stack.enter_context(_bar(self.path.name, start, total))
            stack.enter_context(write_errors(self.path))
            file = stack.enter_context(self.part.open("r+b" if start else "wb"))
            file.seek(start)
            while True:
                try:
                    # read1 gives what has arrived, so that a connection that drops costs none of it.
                    block = response.read1(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise trouble(error) from error
                if not block:
                    break
                size += len(block)
                self._refuse_larger(size)
                file.write(block)
                report(size, total)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        return size

    def _refuse_larger(self, size: int | None) -> None:
        if size is not None and size > self.max_bytes:
            self._forget()
            raise MirrorError(f"is larger than the {self.max_bytes} bytes expected at most")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _origin(self) -> _Origin | None:
        """What the note says; None where there is none, or none that this version wrote."""
        try:
            return _Origin(**json.loads(self.note.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _mismatch(path: Path, found: str, sha256: str | None, md5: str | None) -> str | None:
    """What is wrong with a file's checksums, if anything."""
    if sha256 is not None and found != sha256.lower():
        return f"SHA-256 expected {sha256.lower()}, found {found}"
    if md5 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(
                file, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
        if digest != md5.lower():
            return f"MD5 expected {md5.lower()}, found {digest}"
    return None


@contextmanager
def _bar(name: str, start: int, total: int | None) -> Iterator[Report]:
    """A progress bar in MiB, or one line where the size is unknown."""
    if total is None:
        console.say(f"downloading {name}, size unknown")
        yield lambda done, size: None
        return
    with console.progress(f"downloading {name}", -(-total // 2**20), "MiB") as bar:
        bar.start_at(start >> 20)
        yield lambda done, size: bar.update(-(-done // 2**20))
