"""Runs the worker and prints what went wrong, then the table: kind, cases, exit codes, slowest, peak memory.

python -m malformed.report [--seed N] [--only TEXT]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict


def main() -> None:
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "malformed.worker", folder, *sys.argv[1:]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                record = json.loads(line)
                found[record["kind"]].append(record)
                if record["problem"]:
                    print(
                        f"{record['kind']}/{record['name']}: {record['problem']}\n    {record['arguments']}"
                    )
                    print("    " + record["stderr"].replace("\n", "\n    "), flush=True)
    for kind, records in found.items():
        codes = Counter(record["code"] for record in records)
        slowest = max(record["seconds"] for record in records)
        peak = max(record["peak"] for record in records) >> 20
        wrong = sum(record["problem"] is not None for record in records)
        print(
            f"{kind:24} {len(records):4} {dict(sorted(codes.items()))} {slowest:.2f} s {peak} MiB {wrong} wrong"
        )
    print("in all", sum(map(len, found.values())))


if __name__ == "__main__":
    main()
