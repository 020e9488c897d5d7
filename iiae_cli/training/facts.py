"""What training shows of itself while it runs, in few words."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch

_SHOWN = (
    ("loss", ("loss",)),
    ("reconstruction", ("reconstruction_x", "reconstruction_y")),
    ("KL(z^s)", ("kl_shared_prior",)),
    ("KL(z^x, z^y)", ("kl_exclusive_x", "kl_exclusive_y")),
)


def loss_facts(terms: Mapping[str, float]) -> dict[str, str]:
    """The objective's terms by the names that people know them by, x / y, in nats; terms it has not are left out."""
    return {
        name: " / ".join(f"{terms[key]:.4g}" for key in keys)
        for name, keys in _SHOWN
        if all(key in terms for key in keys)
    }


def memory_text(device: torch.device) -> str:
    """The most memory held so far: the device's on a GPU, else this process's."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
    elif sys.platform == "win32":
        return "?"
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{held / 1e9:.2f} GB"
