"""What a user can cause: the core raises it, `cli/app.py` prints it and exits."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_SOME_SKIPPED = 3
EXIT_INTERRUPTED = 75  # after SIGTERM and the like
EXIT_CTRL_C = 130


class IiaeError(Exception):
    """A user's error: one sentence on what is wrong, and a hint on what mends it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DamagedFile(IiaeError):
    """A file whose content is certainly not what was once written."""


class Interrupted(Exception):
    """A signal stopped the work after everything was saved."""

    def __init__(self, exit_code: int, where: str) -> None:
        super().__init__(where)
        self.exit_code = exit_code
        self.where = where  # what was saved; empty if another process says it
