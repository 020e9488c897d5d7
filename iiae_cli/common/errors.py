"""What a user can cause: the core raises it, `cli/app.py` prints it and exits."""

from __future__ import annotations

import re

EXIT_USER_ERROR = 2
EXIT_SOME_SKIPPED = 3
EXIT_INTERRUPTED = 75  # after SIGTERM and the like
EXIT_CTRL_C = 130


# Words of pydantic, which newer typer uses too, and of click; and plain ones.
_PLAIN_WORDS = {
    "Value error, ": "",
    "(Input|List|String) should": "must",
    "a valid integer": "a whole number",
    "a valid (float|number)": "a number",
    "a valid list": "a list",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", (unable|got|but).*| after validation": "",
}


def plain_words(message: str) -> str:
    """What pydantic says of a value, such as "Input should be a valid integer, unable to …"."""
    for pattern, words in _PLAIN_WORDS.items():
        message = re.sub(pattern, words, message)
    return message


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
