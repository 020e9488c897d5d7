"""What the downloader needs of HTTP: an opener for http and https alone, what to try again, a few headers."""

from __future__ import annotations

import http.client
import re
import ssl
from email.message import Message
from urllib import request
from urllib.error import URLError

_BROKEN = (
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    ssl.SSLEOFError,
    http.client.HTTPException,
)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class MirrorError(Exception):
    """This mirror will not give the file."""


class Dropped(Exception):
    """The transfer broke; asking again may help."""


def opener() -> request.OpenerDirector:
    """http and https, with the environment's proxies; no files, no ftp."""
    director = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


def trouble(error: Exception) -> Dropped | MirrorError:
    """Whether a failed transfer is worth another try: broken connections are, unknown or closed hosts are not."""
    cause = (
        error.reason
        if isinstance(error, URLError) and isinstance(error.reason, Exception)
        else error
    )
    if isinstance(cause, TimeoutError):
        return Dropped("no answer in time")
    kind = Dropped if isinstance(cause, _BROKEN) else MirrorError
    return kind(str(cause) or type(cause).__name__)


def status_trouble(code: int, reason: str) -> Dropped | MirrorError:
    """Whether a refusal is worth another try: an overloaded server is, a missing file is not."""
    return (Dropped if code in _TRY_AGAIN else MirrorError)(f"HTTP {code} {reason}")


def validator(headers: Message) -> str | None:
    """What `If-Range` may hold: a strong ETag, else the date."""
    tag: str | None = headers.get("ETag")
    if tag is not None and tag.startswith('"'):
        return tag
    return headers.get("Last-Modified")


def length(headers: Message) -> int | None:
    """Bytes of the body, where the server says it."""
    value = headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else None


def content_range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and size of the whole, of `bytes FIRST-LAST/SIZE`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])
