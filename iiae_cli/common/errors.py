"""What stops the work: user errors and signals, with their exit codes.

The core raises, and `cli/app.py` prints. Signals set a flag, which work reads after every step and
before every block.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_USER_ERROR = 2
EXIT_SOME_SKIPPED = 3
EXIT_INTERRUPTED = 75  # after SIGTERM and the like
EXIT_CTRL_C = 130
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class IiaeError(Exception):
    """A user's error: a sentence on what is wrong, and a hint on how to mend it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DamagedFile(IiaeError):
    """A file that is certainly corrupt, not only unreadable."""


class Interrupted(Exception):
    """A signal stopped the work, and everything is saved."""

    def __init__(self, exit_code: int, where: str) -> None:
        super().__init__(where)
        self.exit_code = exit_code
        self.where = where  # what was saved; empty if another process prints it


class Stop:
    """Whether work should stop, and with which exit code."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline  # `time.monotonic()` after which to stop
        self.limit: float | None = None  # the deadline of training, once it has made a step
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


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Lets signals set the flag inside the block; a second Ctrl-C ends the process at once.

    Afterwards the old handlers return. If the flag is set, further signals are ignored instead, so
    that the process ends with its own exit code.
    """
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.request(EXIT_CTRL_C if number == signal.SIGINT else EXIT_INTERRUPTED)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if stop.exit_code is None else signal.SIG_IGN)


# ---- messages of libraries

# Phrases of pydantic (also used by newer typer) and click, and plain ones.
_PLAIN_WORDS = {
    "Value error, ": "",
    "(Input|List|String) should": "must",
    "a valid integer": "a whole number",
    ", (unable|got|but).*| after validation": "",
}


def plain_words(message: str) -> str:
    """Rewords pydantic's and click's messages, such as "Input should be a valid integer"."""
    for pattern, words in _PLAIN_WORDS.items():
        message = re.sub(pattern, words, message)
    return message
