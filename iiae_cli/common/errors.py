"""User errors, interruptions and exit codes: the core raises them, `cli/app.py` prints them."""

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
    """Rewords pydantic's and click's messages, such as "Input should be a valid integer"."""
    for pattern, words in _PLAIN_WORDS.items():
        message = re.sub(pattern, words, message)
    return message


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
        self.where = where  # what was saved; empty if another process says it
