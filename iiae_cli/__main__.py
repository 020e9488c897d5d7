"""Entry point of `iiae` and of `python -m iiae_cli`.

A scheduler may stop a job while its interpreter still imports. Signals are caught before anything
else is imported, so that `train` ends as it promises even then.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _nothing_begun(number: int, frame: FrameType | None) -> None:
    os.write(2, b"warning: interrupted before anything began; run the same command with --resume\n")
    os._exit(75)


def _speak_utf8() -> None:
    """Restarts in Python's UTF-8 mode if the locale has another encoding.

    File names then decode to the same text everywhere and are written back unchanged.
    """
    utf8 = sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1"
    if not utf8 and "_IIAE_COMPLETE" not in os.environ:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Runs the program."""
    if "train" in sys.argv[1:3]:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, _nothing_begun)
    _speak_utf8()
    from iiae_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
