"""Signals set a flag, nothing more; the loop asks for it between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from iiae_cli.errors import EXIT_CTRL_C, EXIT_INTERRUPTED


class StopFlag:
    """Why to stop, once there is a reason.

    Args:
        time_limit: seconds from now after which to stop; None: never.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self.exit_code: int | None = None
        self._deadline = None if time_limit is None else time.monotonic() + time_limit

    def raised(self) -> bool:
        """Whether a signal came or the time is up."""
        if self.exit_code is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.exit_code = EXIT_INTERRUPTED
        return self.exit_code is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code == EXIT_CTRL_C:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self.exit_code = EXIT_CTRL_C if number == signal.SIGINT else EXIT_INTERRUPTED


@contextmanager
def stop_on_signals(time_limit: float | None = None) -> Iterator[StopFlag]:
    """SIGINT, SIGTERM, SIGUSR2 and a time limit raise the flag while inside; the old handlers come back after."""
    flag = StopFlag(time_limit)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    previous = {number: signal.signal(number, flag._on_signal) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
