"""Shared encoding of stored pictures, side by side with the bare forward pass on preloaded tensors.

python -m benchmarks.encode
python -m benchmarks.encode --preset mnist-cdcb-32 --pictures 4096
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import in_turns, machine, middle, peak_bytes, ratio, report, set_threads
from benchmarks.models import convolution_peak, workload
from iiae_cli.builders import build_model, place
from iiae_cli.data.batches import to_inputs
from iiae_cli.inference.trained import TrainedModel, inference


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mnist-cdcb")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    set_threads(options.threads)
    work = workload(options.preset, options.batch_size, options.set)
    torch.manual_seed(0)
    model = place(build_model(work.config, work.info), "cpu")
    trained = TrainedModel(model, work.size)
    rows = work.rows(options.pictures)
    inputs = to_inputs(rows, work.size)
    batch = options.batch_size

    def bare() -> None:
        with inference(model):
            for start in range(0, len(inputs), batch):
                model.encode_shared("x", inputs[start : start + batch])

    def whole() -> None:
        trained.encode(rows, "x", ["shared"], batch_size=batch)

    runs = {"bare forward": bare, "encode": whole}
    for run in runs.values():
        run()
    seconds = in_turns(runs, options.repetitions)
    rate = ratio(seconds, "bare forward", "encode")
    result = {
        "benchmark": "encode",
        "preset": options.preset,
        "batch_size": batch,
        **machine(options.threads),
        "convolution_gflops_per_cpu_second": convolution_peak(torch.device("cpu")),
        "milliseconds_per_picture": {
            name: {clock: 1e3 * middle(taken)["least"] / len(rows) for clock, taken in one.items()}
            for name, one in seconds.items()
        },
        "rate_of_bare_forward": rate,
        "peak_bytes": peak_bytes(),
    }
    if options.json:
        report(result)
        return
    for name, one in result["milliseconds_per_picture"].items():
        print(f"{name}\t{one['cpu']:.3f} ms per picture\t{1e3 / one['cpu']:.1f} pictures/s")
    spread = f"{rate['least']:.2f}-{rate['most']:.2f}"
    print(f"encode runs at {rate['median']:.2f} of the bare forward's rate ({spread})")


if __name__ == "__main__":
    main()
