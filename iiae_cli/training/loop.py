"""The training loop: steps, annealing, learning rate, log averages; everything else leaves through `Events`.

Nothing in a step depends on anything but weights, optimiser state, seed and step number: the order of pairs, the noise
of the reparameterisation and dropout's masks are re-seeded from (seed, step). A run that was stopped and resumed
therefore ends in the same weights, on CPU bit for bit, as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from iiae_cli.model.gaussian import Part
from iiae_cli.model.iiae import IIAE, Posteriors, Reconstructions
from iiae_cli.model.objective import Objective


class Events(Protocol):
    """What the loop tells its owner. `step` counts optimiser steps done."""

    def progress(self, step: int) -> None:
        """After every step; must not wait for the device."""

    def log(self, step: int, terms: dict[str, float]) -> None:
        """Every `log_every` steps: the loss terms' averages since the last time."""

    def validate(self, step: int) -> bool:
        """When validation is due; the loop is in training mode before and after. False: a stop broke it off."""

    def checkpoint(self, step: int) -> None:
        """When everything should be saved."""

    def should_stop(self) -> bool:
        """Asked after every step and validation; when true, the loop saves and returns."""


class Share(Protocol):
    """Where several processes train on one batch: this one's part (distributed.py)."""

    part: Part
    weight: float

    def combine(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Between backward pass and optimiser: gradients become the whole batch's, like the terms returned."""


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


def fit(
    *,
    model: IIAE,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    state: TrainState,
    total_steps: int,
    seed: int,
    events: Events,
    log_every: int,
    validate_every: int,
    checkpoint_every: int,
    bf16: bool = False,
    compile_step: bool = False,
    share: Share | None = None,
) -> bool:
    """Train from `state.step` to `total_steps`.

    Args:
        model: updated in place, like `optimizer` and `state`.
        objective: the loss.
        optimizer: its learning rate is set before every step.
        learning_rate: of optimiser step 0, 1, ….
        batch_at: x (B, …) and y (B, …) of step 0, 1, …, on the model's device.
        state: where to start.
        total_steps: where to end.
        seed: of noise and dropout.
        events: receives everything that leaves the loop.
        log_every: steps between log lines.
        validate_every: steps between validations; the last step always validates.
        checkpoint_every: steps between checkpoints; the last step always saves one.
        bf16: autocast the networks to bfloat16; KLs and losses stay float32.
        compile_step: compile the networks with torch.compile.
        share: this process's part of every batch, which `batch_at` gives; None: all of it.

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
        end = done == total_steps or state.ended
        if stop or end or done % checkpoint_every == 0:
            events.checkpoint(done)
        return not stop or (end and not state.owed)

    part = None if share is None else share.part
    device_type = next(model.parameters()).device.type

    def networks(x: Tensor, y: Tensor) -> tuple[Posteriors, Reconstructions]:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16):
            return model.forward(x, y, part)

    # The objective stays outside: it depends on the step number, and each new number would compile again.
    # CUDA graphs take the launches of many small kernels, which are most of a small batch's time, off the CPU.
    graphs = compile_step and device_type == "cuda"
    run_networks = (
        torch.compile(networks, mode="reduce-overhead" if graphs else None)
        if compile_step
        else networks
    )
    model.train()
    if state.owed and not settle():
        return False
    while state.step < total_steps and not state.ended:
        step = state.step
        x, y = batch_at(step)
        seed_step(seed, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        posteriors, reconstructions = run_networks(x, y)
        terms = objective(posteriors, reconstructions, step)
        optimizer.zero_grad(set_to_none=True)
        (terms["loss"] if share is None else share.weight * terms["loss"]).backward()  # type: ignore[no-untyped-call]
        if share is not None:
            terms = share.combine(terms)
        optimizer.step()
        for name, value in terms.items():
            detached = value.detach()
            state.running[name] = (
                state.running[name] + detached if name in state.running else detached
            )
        state.step = done = step + 1
        last = done == total_steps
        events.progress(done)
        if done % log_every == 0 or last:
            count = log_every if done % log_every == 0 else done % log_every
            events.log(done, {name: float(state.running[name]) / count for name in terms})
            state.running = {}
        state.owed = done % validate_every == 0 or last
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
    """Put back what `optimizer_tensors` gave; each tensor takes its parameter's device and memory format.

    Raises:
        KeyError: a parameter that learns is missing from `tensors`.
    """
    if not tensors:
        return  # saved before the first step
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        optimizer.state[parameter] = {
            "step": tensors[f"{name}.step"].clone().to(parameter.device),
            **{
                key: torch.empty_like(parameter).copy_(tensors[f"{name}.{key}"])
                for key in ("exp_avg", "exp_avg_sq")
            },
        }
