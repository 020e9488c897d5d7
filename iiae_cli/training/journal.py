"""What a training tells while it runs: metrics.jsonl, TensorBoard, samples, the display."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from iiae_cli.common import console
from iiae_cli.common.files import write_errors, writing
from iiae_cli.runs.directory import RunDir
from iiae_cli.training.validation import Both, Validation

_SHOWN = {
    "loss": ("loss",),
    "reconstruction": ("reconstruction_x", "reconstruction_y"),
    "KL(z^s)": ("kl_shared_prior",),
    "KL(z^x, z^y)": ("kl_exclusive_x", "kl_exclusive_y"),
}


class Journal:
    """Writes into a run directory on the first rank, and drops everything on others."""

    def __init__(self, run: RunDir, device: torch.device) -> None:
        self._run, self._device = run, device
        self._writer: Any = None
        self._bar: console.Progress | None = None
        self._clock = (time.monotonic(), 0)

    @contextmanager
    def writing_from(self, step: int) -> Iterator[None]:
        """Open TensorBoard's file; what an interrupted run wrote there from `step` on is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        with write_errors(self._run.path):
            self._writer = SummaryWriter(str(self._run.tensorboard_folder), purge_step=step)
            try:
                yield
            finally:
                self._writer.close()
                self._writer = None

    @contextmanager
    def showing(self, label: str, steps: int, first: int, batch_size: int) -> Iterator[None]:
        """Show progress from step `first` to `steps`."""
        self._clock = (time.monotonic(), first)
        with console.progress(label, steps, items=(batch_size, "pairs")) as self._bar:
            self._bar.start_at(first)
            yield
        self._bar = None

    def progress(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(step)

    def pairs_per_second(self, step: int, batch_size: int) -> float:
        """The pace since this training began or was resumed."""
        started, first = self._clock
        return (step - first) * batch_size / max(1e-9, time.monotonic() - started)

    def terms(self, step: int, figures: dict[str, float], terms: Mapping[str, float]) -> None:
        """Averages of the loss terms and what belongs to them."""
        self._write("train", {"step": step, **figures}, figures)
        facts = {
            name: " / ".join(f"{terms[key]:.4g}" for key in keys)
            for name, keys in _SHOWN.items()
            if all(key in terms for key in keys)
        }
        self._show(facts | {"memory": memory_text(self._device)})

    def validation(self, step: int, validation: Validation, baseline: Both | None) -> None:
        """Figures of a validation, and the training-free baseline's."""
        record = {"step": step, **validation.record(), "baseline": baseline}
        self._write("validation", record, validation.scalars())
        self._show(validation.facts())
        console.say(f"step {step}: validation {validation.summary()}")

    def _write(self, kind: str, record: dict[str, Any], scalars: Mapping[str, float]) -> None:
        if self._writer is not None:
            self._run.append_metrics({"kind": kind, **record})
            for name, value in scalars.items():
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])

    def _show(self, facts: Mapping[str, str]) -> None:
        if self._bar is not None:
            self._bar.facts.update(facts)

    def samples(self, grid: Image, step: int) -> None:
        """A sample grid as a file and for TensorBoard."""
        with writing(self._run.samples_folder / f"step-{step:08d}.png") as temporary:
            grid.save(temporary, format="PNG")
        self._writer.add_image("samples", np.asarray(grid), step, dataformats="HWC")


def memory_text(device: torch.device) -> str:
    """The most memory held so far: the device's on a GPU, else this process's."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB"
    if sys.platform == "win32":
        return "?"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
