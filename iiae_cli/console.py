"""The only user of rich: results to stdout, everything else to stderr.

A terminal gets tables, colours and progress bars; a pipe gets plain text, tables tab-separated, one progress line every
few seconds. `NO_COLOR` is honoured (by rich).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 5.0

_verbosity = 0


def set_verbosity(level: int) -> None:
    """−1 quiet (warnings and errors only), 0 normal, 1 verbose."""
    global _verbosity
    _verbosity = level


def say(message: str) -> None:
    """A line of information on stderr."""
    if _verbosity >= 0:
        _stderr(message)


def detail(message: str) -> None:
    """A line on stderr that only -v shows."""
    if _verbosity >= 1:
        _stderr(message)


def warn(message: str) -> None:
    """A warning on stderr."""
    _stderr(f"warning: {message}", style="yellow")


def fail(message: str, hint: str) -> None:
    """The two lines of a user's error on stderr."""
    _stderr(f"error: {_one_line(message)}", style="red")
    _stderr(f"hint: {_one_line(hint)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _stderr(text: str, style: str | None = None) -> None:
    if style is not None and sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, and nothing else."""
    json.dump(value, sys.stdout, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def print_line(text: str) -> None:
    """One line of results on stdout."""
    sys.stdout.write(text + "\n")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", *, header: bool = True
) -> None:
    """A table on stdout: drawn on a terminal, tab-separated in a pipe (its header only where `header`)."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left")
        for name in headers:
            table.add_column(name)
        for row in rows:
            table.add_row(*[Text(_cell(value)) for value in row])
        Console().print(table)
        return
    lines = [headers, *rows] if header else rows
    for line in lines:
        sys.stdout.write("\t".join(_cell(value).replace("\t", " ").replace("\n", " ") for value in line) + "\n")


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Progress:
    """Advance and describe one piece of work; made by `progress`."""

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._first = 0
        self._bar: Any = None
        self._task: Any = None

    def start_at(self, done: int) -> None:
        """Begin at `done`, for resumed work."""
        self.done = self._first = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, done: int, note: str | None = None) -> None:
        """Say how far the work is."""
        self.done = done
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self.note)
        elif _verbosity >= 0 and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            rate = (self.done - self._first) / max(1e-9, self._last_line - self._started)
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            _stderr(f"{self.done}/{self.total} {self.unit}, {rate:.3g}/s, {_duration(left)} left {self.note}".rstrip())


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress(label: str, total: int, unit: str = "steps") -> Iterator[Progress]:
    """Show progress on stderr while inside: a bar on a terminal, a line every few seconds elsewhere."""
    tracker = Progress(total, unit)
    if not sys.stderr.isatty() or _verbosity < 0:
        yield tracker
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tracker._bar = bar
        tracker._task = bar.add_task(label, total=total, note="")
        yield tracker
