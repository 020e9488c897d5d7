"""What reading, resizing and scaling add to a training step, from a prepared file.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --preset mnist-cdcb-32 --steps 20

The step runs on one preloaded batch; the feed of `iiae train` is timed beside it on a file of
random pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.common import in_turns, machine, middle, peak_bytes, ratio, report, set_threads
from benchmarks.models import own_steps, workload
from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.training.data import TrainingData
from iiae_cli.training.step import Feed, choose_speed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mnist-cdcb")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    set_threads(options.threads)
    device = torch.device("cpu")
    work = workload(
        options.preset,
        options.batch_size,
        [*options.set, f"training.precision={options.precision}"],
    )
    precision = choose_speed(work.config, work.size, device).training.precision
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder) / "data.h5", [str(number) for number in range(options.pairs)]
        split = Split(
            Side(work.rows(options.pairs, 0), ids), Side(work.rows(options.pairs, 1), ids)
        )
        write_data_file(path, "random", {"train": split}, {})
        data = TrainingData(DataFile(path), work.config)
        order = data.order(work.batch_size, 0)
        with Feed(data, order.indices, work.size, device) as feed:
            batch, asked = feed(0), iter(range(1, 1 << 30))
            own = own_steps(work, lambda step: batch, device, precision=precision)
            runs = {
                "step": lambda: own(options.steps),
                "batch": lambda: [feed(next(asked)) for _ in range(options.steps)],
            }
            for run in runs.values():
                run()
            seconds = in_turns(runs, options.repetitions)
    added = {clock: ratio(seconds, "batch", "step", clock) for clock in ("cpu", "wall")}
    best = min(seconds["batch"]["wall"]) / options.steps
    result = {
        "benchmark": "input_pipeline",
        "preset": options.preset,
        "batch_size": work.batch_size,
        "precision": precision,
        **machine(options.threads),
        "seconds": {
            name: {clock: middle(values) for clock, values in one.items()}
            for name, one in seconds.items()
        },
        "pairs_per_second": work.batch_size / best,
        "added_to_step": added,
        "peak_bytes": peak_bytes(),
    }
    if options.json:
        report(result)
        return
    print(
        f"{options.preset}, batch {work.batch_size}, {precision}: "
        f"input {work.batch_size / best:.0f} pairs/s, {1000 * best:.1f} ms a batch at best"
    )
    for clock, one in added.items():
        least, median, most = (100 * one[key] for key in ("least", "median", "most"))
        print(f"adds {median:.2f} % to a step ({least:.2f}-{most:.2f}) by {clock} seconds")


if __name__ == "__main__":
    main()
