"""The only user of rich: results to stdout, everything else to stderr.

A terminal gets tables, colours and progress bars; a pipe gets plain text, tables tab-separated, one progress line every
few seconds. `NO_COLOR` is honoured (by rich).
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 5.0
MARK_SECONDS = 0.5  # how often a pace is noted down
RATE_SECONDS = 30.0  # how long back the pace looks

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
    text = "".join(
        one if one >= " " and one != "\x7f" else repr(one)[1:-1] for one in text
    )  # names may hold anything
    if style is not None and sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, and nothing else."""
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # of a file name that is no UTF-8
            text = json.dumps(value, indent=indent, allow_nan=False)
    sys.stdout.write(text + "\n")


def print_line(text: str) -> None:
    """One line of results on stdout."""
    sys.stdout.write(text + "\n")


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str = "",
    *,
    header: bool = True,
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
        sys.stdout.write(
            "\t".join(_cell(value).replace("\t", " ").replace("\n", " ") for value in line) + "\n"
        )


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Progress:
    """Advance and describe one piece of work; made by `progress`.

    Attributes:
        total: units of work in all.
        done: units done.
        facts: what else to show, by name, in this order; a terminal shows it below the bar.
    """

    def __init__(self, total: int, unit: str, items: tuple[int, str] | None = None) -> None:
        self.total = total
        self.done = 0
        self.facts: dict[str, str] = {}
        self._unit = unit
        self._per_unit, self._item = items or (1, unit)
        self._last_line = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._last_line, 0)])
        self._bar: Any = None
        self._task: Any = None

    def start_at(self, done: int) -> None:
        """Begin at `done`, for resumed work."""
        self.done = done
        self._marks = deque([(time.monotonic(), done)])
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, done: int) -> None:
        """Say how far the work is."""
        self.done = done
        now = time.monotonic()
        if now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, done))
            while now - self._marks[0][0] > RATE_SECONDS and len(self._marks) > 2:
                self._marks.popleft()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, pace=self.pace())
        elif _verbosity >= 0 and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            _stderr(
                ", ".join(
                    [f"{self.done}/{self.total} {self._unit}", self.pace(), *self.fact_texts()]
                )
            )

    def pace(self) -> str:
        """Items a second over the last half minute, pauses included, and the time left at that pace."""
        started, first = self._marks[0]
        rate = (self.done - first) / max(1e-9, time.monotonic() - started)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        return f"{rate * self._per_unit:.3g} {self._item}/s, {_duration(left)} left"

    def fact_texts(self) -> list[str]:
        """Names and values of the facts."""
        return [f"{name} {value}" for name, value in self.facts.items()]


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress(
    label: str, total: int, unit: str = "steps", *, items: tuple[int, str] | None = None
) -> Iterator[Progress]:
    """Show progress on stderr while inside: a live bar on a terminal, a line every few seconds elsewhere.

    Args:
        label: what is being done.
        total: units of work in all.
        unit: of work.
        items: how many of what are in each unit, (32, "pairs"); the pace is told in these.
    """
    tracker = Progress(total, unit, items)
    if not sys.stderr.isatty() or _verbosity < 0:
        yield tracker
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Display(Bar):
        """The bar, and what is known of the work below it; facts stay whole where a line is too narrow."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            facts = [one.replace(" ", "\N{NO-BREAK SPACE}") for one in tracker.fact_texts()]
            if facts:
                yield Padding(Text("   ".join(facts)), (0, 0, 0, 2))

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Display(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        tracker._bar = bar
        tracker._task = bar.add_task(label, total=total, pace="")
        yield tracker
