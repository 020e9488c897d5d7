"""The training loop: steps, learning rate, log averages; everything else leaves through `Events`.

A step depends on nothing but weights, optimiser state, seed and step number: the order of pairs,
the noise of the reparameterisation and dropout are re-seeded from (seed, step). A run that was
stopped and resumed therefore ends in the same weights as one that was not, on CPU bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from iiae_cli.model.iiae import IIAE, Posteriors, Reconstructions
from iiae_cli.model.objective import Objective
from iiae_cli.training.distributed import Share


class Events(Protocol):
    """What the loop asks of its owner. `step` counts optimiser steps done."""

    def progress(self, step: int) -> None:
        """After every step; must not wait for the device."""

    def log(self, step: int, terms: dict[str, float]) -> None:
        """Every `log_every` steps: the loss terms' averages since the last time."""

    def validate(self, step: int) -> bool:
        """When validation is due; leaves training mode as it is. False: it was interrupted."""

    def checkpoint(self, step: int) -> None:
        """When everything should be saved."""

    def should_stop(self) -> bool:
        """Asked after every step and validation; if true, the loop saves and returns."""


@dataclass
class TrainState:
    """What changes while training.

    Attributes:
        step: optimiser steps done.
        running: sums of loss terms since the last log line.
        owed: whether the validation that is due at `step` is still to be done.
        ended: whether the owner, having validated, wants no further step.
    """

    step: int = 0
    running: dict[str, Tensor] = field(default_factory=dict)
    owed: bool = False
    ended: bool = False


@dataclass(frozen=True)
class Schedule:
    """When training does what, in steps.

    Attributes:
        steps: in all.
        log_every: between log lines.
        validate_every: between validations; the last step always validates.
        checkpoint_every: between checkpoints; the last step always saves one.
        learning_rate: of optimiser step 0, 1, ….
        seed: of noise and dropout.
    """

    steps: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    learning_rate: Callable[[int], float]
    seed: int = 0


class Networks(nn.Module):
    """One pass through a model.

    Args:
        model: that is trained.
        bf16: autocast the networks to bfloat16; KLs and losses stay float32.
    """

    def __init__(self, model: IIAE, bf16: bool = False) -> None:
        super().__init__()
        self.model = model
        self._bf16 = bf16
        self._device = next(model.parameters()).device.type

    def forward(self, x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        """Posteriors and reconstructions of a batch of x (B, …) and y (B, …)."""
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16):
            passed: tuple[Posteriors, Reconstructions] = self.model(x, y)
            return passed


Step: TypeAlias = Callable[[Tensor, Tensor], tuple[Posteriors, Reconstructions]]


def compiled(networks: nn.Module, *, graphs: bool) -> Step:
    """Networks compiled by torch.compile.

    CUDA graphs take the launches of many small kernels, which are most of a small batch's time, off
    the CPU. The objective stays outside: it depends on the step number, and each new number would
    compile again.
    """
    run: Step = torch.compile(networks, mode="reduce-overhead" if graphs else None)

    def step(x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return run(x, y)

    return step if graphs else run


def fit(
    networks: Step,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    state: TrainState,
    schedule: Schedule,
    events: Events,
    share: Share,
) -> bool:
    """Train from `state.step` to the schedule's end.

    Args:
        networks: `Networks` in training mode, wrapped or compiled; their weights are updated in
            place.
        objective: the loss.
        optimizer: its learning rate is set before every step.
        batch_at: x (B, …) and y (B, …) of step 0, 1, …, on the networks' device.
        state: where to start; updated in place.
        schedule: when what is done.
        events: receives everything that leaves the loop.
        share: this process's part of every batch, which `batch_at` returns.

    Returns:
        Whether the end was reached, or `state.ended` set, rather than a stop asked for.
    """

    def settle() -> bool:
        """Do what is due at the boundary after `state.step`; whether to go on."""
        done = state.step
        stop = events.should_stop()
        if state.owed and not stop:
            state.owed = not events.validate(done)
            stop = events.should_stop()
        end = done == schedule.steps or state.ended
        if stop or end or done % schedule.checkpoint_every == 0:
            events.checkpoint(done)
        return not stop or (end and not state.owed)

    if state.owed and not settle():
        return False
    while state.step < schedule.steps and not state.ended:
        step = state.step
        x, y = batch_at(step)
        seed_step(schedule.seed, step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        posteriors, reconstructions = networks(x, y)
        terms = objective(posteriors, reconstructions, step)
        optimizer.zero_grad(set_to_none=True)
        share.scaled(terms["loss"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, value in terms.items():
            value = value.detach()
            state.running[name] = state.running[name] + value if name in state.running else value
        state.step = done = step + 1
        last = done == schedule.steps
        events.progress(done)
        if done % schedule.log_every == 0 or last:
            running = share.mean(state.running)
            count = done % schedule.log_every or schedule.log_every
            events.log(done, {name: float(running[name]) / count for name in terms})
            state.running = {}
        state.owed = done % schedule.validate_every == 0 or last
        if not settle():
            return False
    return True


def seed_step(seed: int, step: int) -> None:
    """Seed torch's random state for one step from (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]))


def optimizer_tensors(model: IIAE, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as tensors named `PARAMETER.FIELD`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    model: IIAE, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned, in each parameter's device and memory format.

    Raises:
        KeyError: a parameter that learns is missing from `tensors`.
    """
    for name, parameter in model.named_parameters() if tensors else ():
        if parameter.requires_grad:
            state = {"step": tensors[f"{name}.step"].clone().to(parameter.device)}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter).copy_(tensors[f"{name}.{key}"])
            optimizer.state[parameter] = state
