"""The only user of rich: results to stdout, everything else to stderr.

A terminal gets tables, colours and progress bars; a pipe gets plain text, tables tab-separated, one
progress line every few seconds. `NO_COLOR` is honoured (by rich).
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TextIO

LINE_SECONDS, LATER_SECONDS = 5.0, 60.0  # between progress lines: at first, after a minute

_verbosity = 0
_under_way = False  # whether progress is shown


def set_verbosity(level: int) -> None:
    """Sets how much goes to stderr: −1 warnings and errors only, 0 normal, 1 more."""
    global _verbosity
    _verbosity = level


def prepare_streams() -> None:
    """Makes streams accept any text, whatever the locale, and reopens closed ones on /dev/null.

    Undecodable bytes of file names are written unchanged, characters that an encoding lacks as
    escapes.
    """
    codecs.register_error("iiae", _escape)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as by >&-
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="iiae")


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def say(message: str, level: int = 0) -> None:
    """Prints a line of information on stderr; level 1 only with -v."""
    if _verbosity >= level:
        _stderr(message)


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    _stderr(f"warning: {message}", style="yellow")


def fail(message: str, hint: str) -> None:
    """Prints the two lines of a user's error on stderr."""
    _stderr(f"error: {' '.join(message.split())}", style="red")
    _stderr(f"hint: {' '.join(hint.split())}")


def _stderr(text: str, style: str = "") -> None:
    """Prints a line with control characters escaped: file names may hold any."""
    text = "".join(repr(char)[1:-1] if char < " " or char == "\x7f" else char for char in text)
    with _to(sys.stderr):
        if style and sys.stderr.isatty():
            from rich.console import Console

            console = Console(stderr=True, highlight=False, soft_wrap=True)
            console.print(text, style=style, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def _to(stream: TextIO) -> Iterator[None]:
    """Redirects a stream to /dev/null if writing fails: its reader has exited, or its disk is full.

    Lost messages do not stop the work. Lost results raise, unless the reader closed the pipe.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    indent = 2 if sys.stdout.isatty() else None
    plain = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    text = json.dumps(value, indent=indent, ensure_ascii=plain, allow_nan=False)
    # Bytes of a file name that are not UTF-8 become escapes.
    print_line(text.encode("utf-8", "backslashreplace").decode())


def print_line(text: str) -> None:
    """Prints one line of results on stdout."""
    with _to(sys.stdout):
        sys.stdout.write(text + "\n")


def flush_results() -> None:
    """Flushes standard output; a reader that stops early, such as `head`, is no error."""
    with _to(sys.stdout):
        sys.stdout.flush()


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str = "",
    *,
    header: bool = True,
    digits: int = 3,
) -> None:
    """Prints a table on stdout: drawn on a terminal, tab-separated (header optional) in a pipe.

    Fractions are shown with `digits` significant digits, None is blank; `--json` has it all.
    """

    def cell(value: object) -> str:
        if value is None:
            return ""
        return number(value, digits) if isinstance(value, float) else str(value)

    cells = [[*map(cell, row)] for row in rows]
    if not sys.stdout.isatty():
        for line in [headers, *cells] if header else cells:
            print_line("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, title=title or None, title_justify="left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def number(value: float, digits: int) -> str:
    """Formats a number with `digits` significant digits, large ones without an exponent."""
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


class Progress:
    """The progress of one task; `progress` makes it. `speaks`: by lines, every few seconds."""

    def __init__(
        self, total: int, unit: str, items: tuple[int, str] | None = None, *, speaks: bool = True
    ) -> None:
        self.total, self.done, self._first = total, 0, 0
        self.facts: dict[str, str] = {}  # more to show, by name, in this order
        self._unit, self._speaks = unit, speaks
        self._per_unit, self._item = items or (1, unit)
        self._started = self._last_line = time.monotonic()

    def start_at(self, done: int) -> None:
        """Starts at `done`, for resumed work."""
        self._started, self._first = time.monotonic(), done
        self.update(done)

    def update(self, done: int) -> None:
        """Shows that `done` units are done."""
        self.done, now = done, time.monotonic()
        wait = LINE_SECONDS if now - self._started < LATER_SECONDS else LATER_SECONDS
        if self._speaks and now - self._last_line >= wait:
            self._last_line = now
            say(self.line())

    def line(self) -> str:
        """Returns what is done, the items per second so far, the time left, and the facts."""
        from datetime import timedelta  # keeps start-up fast

        rate = (self.done - self._first) / max(1e-9, time.monotonic() - self._started)
        left = timedelta(seconds=round((self.total - self.done) / rate)) if rate > 0 else "?"
        pace = f"{rate * self._per_unit:.3g} {self._item}/s, {left} left"
        facts = [f"{name} {value}" for name, value in [*self.facts.items()]]
        return ", ".join([f"{self.done}/{self.total} {self._unit}", pace, *facts])


@contextmanager
def progress(
    label: str, total: int, unit: str = "steps", *, items: tuple[int, str] | None = None
) -> Iterator[Progress]:
    """Shows progress on stderr: a live bar on a terminal, a line every few seconds elsewhere.

    `items` says how many of what each unit holds, such as (32, "pairs"), for the pace. Work that is
    part of other work shows nothing of its own.
    """
    global _under_way
    within, live = _under_way, sys.stderr.isatty() and _verbosity >= 0
    tracker = Progress(total, unit, items, speaks=not within and not live)
    _under_way = True
    try:
        with _bar(tracker, label) if live and not within else nullcontext():
            yield tracker
    finally:
        _under_way = within


def _bar(tracker: Progress, label: str) -> AbstractContextManager[object]:
    """Returns a live line and bar."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    def drawn() -> Group:
        line = Text(f"{label}: {tracker.line()}")
        return Group(line, ProgressBar(tracker.total, tracker.done))

    console = Console(stderr=True, highlight=False)
    return Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=10)
