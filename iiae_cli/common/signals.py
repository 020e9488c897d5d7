"""Signals set a flag, which work reads after every step and before every block."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from iiae_cli.common.errors import EXIT_CTRL_C, EXIT_INTERRUPTED, IiaeError, Interrupted

PREEMPT_SIGNAL = "USR2"
_USABLE = ("HUP", "QUIT", "TERM", "USR1", "USR2", "XCPU")


class Stop:
    """Whether work should stop, and with which exit code."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline  # `time.monotonic()` after which to stop
        self._code: int | None = None

    @property
    def exit_code(self) -> int | None:
        """130 after Ctrl-C, 75 after another signal or the deadline, else None."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return EXIT_INTERRUPTED if self._code is None and late else self._code

    def request(self, exit_code: int) -> None:
        """Asks the work to stop with an exit code."""
        self._code = exit_code

    def check(self, saved: str = "nothing was lost; run the same command with --resume") -> None:
        """Raises `Interrupted` if work should stop; `saved` says how to continue."""
        code = self.exit_code
        if code is not None:
            raise Interrupted(code, saved)


NEVER = Stop()  # for work that nobody interrupts


def signal_of(name: str) -> signal.Signals:
    """Returns the signal of a name, with or without SIG; raises if no process should stop by it."""
    short = name.upper().removeprefix("SIG")
    if short not in _USABLE:
        message = f"--preempt-signal {name} is no signal to stop by"
        raise IiaeError(message, f"choose one of {', '.join(_USABLE)}")
    return signal.Signals[f"SIG{short}"]


@contextmanager
def stop_on_signals(preempt: str = PREEMPT_SIGNAL) -> Iterator[Stop]:
    """Lets signals set the flag inside the block; a second Ctrl-C ends the process at once.

    Afterwards the old handlers return. If the flag is set, further signals are ignored instead, so
    that the process ends with its own exit code.
    """
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.request(EXIT_CTRL_C if number == signal.SIGINT else EXIT_INTERRUPTED)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = {signal.SIGINT, signal.SIGTERM, signal_of(preempt)}
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if stop.exit_code is None else signal.SIG_IGN)
