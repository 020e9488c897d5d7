"""How long the program takes to start, beside a bare interpreter and an import of torch.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.common import in_turns, machine, middle, ratio, report

COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "iiae --version": ["-m", "iiae_cli", "--version"],
    "iiae --help": ["-m", "iiae_cli", "--help"],
    "iiae train --print-config": [
        "-m",
        "iiae_cli",
        "train",
        "--preset",
        "digits-cdcb",
        "--print-config",
    ],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--only", action="append", choices=[*COMMANDS], help="beside python; repeatable"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def starter(arguments: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    runs = {
        name: starter(arguments)
        for name, arguments in COMMANDS.items()
        if not options.only or name in (*options.only, "python")
    }
    for run in runs.values():
        run()
    seconds = in_turns(runs, options.repetitions)
    result = {
        "benchmark": "startup",
        **machine(1),
        "wall_seconds": {name: middle(taken["wall"]) for name, taken in seconds.items()},
        "times_python": {name: ratio(seconds, name, "python", "wall") for name in seconds},
    }
    if options.json:
        report(result)
        return
    for name, one in result["wall_seconds"].items():
        print(
            f"{name}\t{one['least']:.3f} s\t{result['times_python'][name]['median']:.1f} x python"
        )


if __name__ == "__main__":
    main()
