"""What tests of several folders share beside the fixtures in conftest.py."""

from __future__ import annotations

from iiae_cli.common.signals import Stop


class StopAt(Stop):
    """Asks to stop at a question, counted from 0, and at every later one."""

    def __init__(self, question: int, exit_code: int = 75) -> None:
        super().__init__()
        self._left, self._then = question, exit_code

    @property
    def exit_code(self) -> int | None:
        self._left -= 1
        return self._then if self._left < 0 else None
