"""Entry point of `iiae` and of `python -m iiae_cli`.

A scheduler may stop a job while its interpreter still imports. So that `train` then ends as it
promises, signals are caught before anything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _nothing_begun(number: int, frame: FrameType | None) -> None:
    os.write(2, b"warning: interrupted before anything began; run the same command with --resume\n")
    os._exit(75)


def main() -> None:
    """Run the program."""
    if "train" in sys.argv[1:3]:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, _nothing_begun)
    from iiae_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
