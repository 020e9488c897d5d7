"""Signals set a flag; the loop asks for it between steps, and phases that may be cut short are.

A step is never broken off: its flag is seen at the next boundary, where everything is saved. Everything else that takes
long (start-up, validation, the gallery) loses nothing when it is broken off, since files appear whole or not at all and
the same work is done again by `--resume`; so there a signal does not wait for anybody to ask (`cuttable`).
Imports nothing heavy: the flag stands before torch is imported.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from iiae_cli.common.errors import EXIT_CTRL_C, EXIT_INTERRUPTED, IiaeError, Interrupted

PREEMPT_SIGNAL = "USR2"


class Cut(BaseException):
    """A signal breaks off work that may be broken off; no `except Exception` on its way may swallow it."""


class StopFlag:
    """Why to stop, once there is a reason.

    Args:
        time_limit: seconds from now after which to stop; None: never.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self.exit_code: int | None = None
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._may_cut = False
        self._saving = False

    def raised(self) -> bool:
        """Whether a signal came or the time is up."""
        if (
            self.exit_code is None
            and self._deadline is not None
            and time.monotonic() >= self._deadline
        ):
            self.exit_code = EXIT_INTERRUPTED
        return self.exit_code is not None

    def agree(self, exit_code: int) -> None:
        """Take over another process's reason; 0 is none."""
        if exit_code and self.exit_code is None:
            self.exit_code = exit_code

    @contextmanager
    def cuttable(self, *, on_time: bool = True) -> Iterator[None]:
        """While inside, a signal breaks the work off at once; it must lose nothing by that.

        Args:
            on_time: whether the time limit does so too.

        Raises:
            Cut: a signal came, before or inside.
        """
        timed = on_time and self._deadline is not None
        self._may_cut = True
        try:
            if self.exit_code is not None:
                raise Cut
            if timed and self._deadline is not None:
                signal.setitimer(signal.ITIMER_REAL, max(1e-3, self._deadline - time.monotonic()))
            yield
        finally:
            self._may_cut = False
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While inside, no signal breaks anything off, not even a second Ctrl-C."""
        before = (self._may_cut, self._saving)
        self._may_cut, self._saving = False, True
        try:
            yield
        finally:
            self._may_cut, self._saving = before

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember; break off what may be."""
        again = number == signal.SIGINT and self.exit_code == EXIT_CTRL_C
        self.exit_code = EXIT_CTRL_C if number == signal.SIGINT else EXIT_INTERRUPTED
        if self._may_cut:
            self._may_cut = False  # what the cut runs through on its way out is left in peace
            raise Cut
        if again and not self._saving:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step


def signal_of(name: str) -> signal.Signals:
    """The signal of a name, with or without SIG.

    Raises:
        IiaeError: no such signal, or one that a process cannot catch or that means something else here.
    """
    full = "SIG" + name.upper().removeprefix("SIG")
    usable = sorted(
        one.name
        for one in (
            signal.SIGTERM,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGXCPU,
        )
    )
    if full not in usable:
        names = ", ".join(one.removeprefix("SIG") for one in usable)
        raise IiaeError(
            f"--preempt-signal {name} is no signal to stop by", f"choose one of {names}"
        )
    return signal.Signals[full]


@contextmanager
def stop_on_signals(
    time_limit: float | None = None, *, preempt: str = PREEMPT_SIGNAL
) -> Iterator[StopFlag]:
    """SIGINT, SIGTERM, the preempt signal and a time limit raise the flag while inside.

    The old handlers come back after, but for a raised flag: then further signals are ignored, so that the process ends
    with its own exit code.

    Raises:
        IiaeError: `preempt` names no signal to stop by.
        Interrupted: what could be cut was, with nothing to save.
    """
    numbers = {signal.SIGINT, signal.SIGTERM, signal_of(preempt)}
    flag = StopFlag(time_limit)
    previous = {
        number: signal.signal(number, flag.on_signal) for number in (*numbers, signal.SIGALRM)
    }
    try:
        yield flag
    except Cut:
        assert flag.exit_code is not None
        raise Interrupted(
            flag.exit_code, "nothing was lost; run the same command with --resume"
        ) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if flag.exit_code is not None else handler)
