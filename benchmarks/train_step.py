"""A training step of a preset's model beside a plain PyTorch loop of the same model and batch.

    python -m benchmarks.train_step                     # the paper's 256x256 model, one thread
    python -m benchmarks.train_step --preset mnist-cdcb-32 --threads 2 --steps 10 --repetitions 20
    python -m benchmarks.train_step --preset mnist-cdcb --device cuda --batch-size 256

Competitors: `plain` (NCHW, fp32, Adam as it comes, the loss read every step), `fp32` and, where the
device has a matrix unit for it, `bf16` (`training.step.Step` as `iiae train` calls it). Memory is
measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import in_turns, machine, middle, peak_bytes, ratio, report, set_threads
from benchmarks.models import (
    Workload,
    convolution_peak,
    own_steps,
    plain_step,
    products_of_a_step,
    workload,
)
from iiae_cli.builders import build_model
from iiae_cli.data.batches import to_inputs
from iiae_cli.training.step import multiplies_bf16

ROOT = Path(__file__).parent.parent


def competitors(
    work: Workload, pair: tuple[Tensor, Tensor], device: torch.device, steps: int, only: str | None
) -> dict[str, Callable[[], Any]]:
    """What is compared, each for so many steps; one alone where `only` names it."""

    def finished(run: Callable[[], Any]) -> Callable[[], Any]:
        def whole() -> None:
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return whole

    def many(step: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [step() for _ in range(steps)]

    def fitted(precision: str) -> Callable[[], Any]:
        own = own_steps(work, lambda step: pair, device, precision=precision)
        return lambda: own(steps)

    names = ["plain", "fp32", *(["bf16"] if device.type == "cuda" or multiplies_bf16() else [])]
    found: dict[str, Callable[[], Any]] = {}
    for name in names if only is None else [only]:
        found[name] = finished(
            many(plain_step(work, *pair, device)) if name == "plain" else fitted(name)
        )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One preset's figures."""
    device = torch.device(options.device)
    work = workload(options.preset, options.batch_size, options.set)
    rows = (work.rows(work.batch_size, seed) for seed in (0, 1))
    x, y = (to_inputs(one, work.size, device) for one in rows)
    runs = competitors(work, (x, y), device, options.steps, options.only)
    if options.only:
        for _ in range(2):
            runs[options.only]()
        return {"peak_bytes": peak_bytes()}
    for run in runs.values():
        run()
    seconds = in_turns(runs, options.repetitions)
    clock = "wall" if device.type == "cuda" or options.threads > 1 else "cpu"
    operations = products_of_a_step(
        work, build_model(work.config, work.info), x[:2].cpu(), y[:2].cpu()
    )
    operations *= work.batch_size / 2
    about = machine(options.threads)
    peak = max(about["gflops_per_cpu_second"], convolution_peak(device))
    rates: dict[str, Any] = {}
    for name, taken in seconds.items():
        best = min(taken[clock]) / options.steps
        rates[name] = {
            "seconds_per_step": {
                key: value / options.steps for key, value in middle(taken[clock]).items()
            },
            "pairs_per_second": work.batch_size / best,
            "of_fp32_peak": operations
            / best
            / 1e9
            / peak
            / (options.threads if clock == "wall" else 1),
            "time_of_plain": ratio(seconds, name, "plain", clock),
            "least_time_of_plains_least": min(taken[clock]) / min(seconds["plain"][clock]),
            "peak_bytes": None if options.no_memory else memory_of(name, options),
        }
    return {
        "benchmark": "train_step",
        "preset": options.preset,
        "batch_size": work.batch_size,
        "device": options.device,
        "clock": clock,
        "gflop_per_step": operations / 1e9,
        "convolution_gflops_per_cpu_second": peak,
        **about,
        "competitors": rates,
    }


def memory_of(name: str, options: argparse.Namespace) -> int:
    """The most memory that a process of one competitor alone holds."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        "--preset",
        options.preset,
        "--device",
        options.device,
        "--only",
        name,
    ]
    command += ["--threads", str(options.threads), *(f"--set={one}" for one in options.set)]
    if options.batch_size:
        command += ["--batch-size", str(options.batch_size)]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return int(json.loads(done.stdout)["peak_bytes"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mnist-cdcb")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="per repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", help="run this competitor alone; prints its memory as JSON")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    set_threads(options.threads)
    result = measure(options)
    if options.json or options.only:
        report(result)
        return
    print(
        f"{result['preset']}, batch {result['batch_size']}, {result['threads']} threads, "
        f"{result['clock']} seconds"
    )
    for name, one in result["competitors"].items():
        taken, ratio_to_plain = one["seconds_per_step"], one["time_of_plain"]["median"]
        cells = [
            name,
            f"{taken['least']:.4f} s (median {taken['median']:.4f})",
            f"{one['pairs_per_second']:.1f} pairs/s",
            f"{one['of_fp32_peak']:.2f} of fp32 peak",
            f"{ratio_to_plain:.2f} of plain ({one['least_time_of_plains_least']:.2f} of leasts)",
            "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e9:.2f} GB",
        ]
        print("\t".join(cells).rstrip())


if __name__ == "__main__":
    main()
