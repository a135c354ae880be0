"""Which layers of a model train by fused kernels on its device, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from loraft.figures import counted
from loraft.kernels.fused.capped_rows import capped_modules, fuse_capped
from loraft.kernels.fused.fuse import fuse_gated, fuse_norms, fuse_rotary
from loraft.kernels.fused.row_trials import CAPPED, capped_fault
from loraft.kernels.fused.trials import GATED, NORMS, ROTARY, faults

FUSE: Mapping[str, Callable[[nn.Module], int]] = {
    NORMS: fuse_norms, ROTARY: fuse_rotary, GATED: fuse_gated, CAPPED: fuse_capped,
}  # fmt: skip
"""What lets the layers of a model train by each fused form, and counts them."""


def fuse_chosen(model: nn.Module, device: str, dtype: torch.dtype) -> list[str]:
    """Let the layers train by the fused forms that this GPU computes rightly; which ones these are, in sentences."""
    if device != "cuda":
        return []
    wrong = dict(faults(device, dtype))
    capped = next(iter(capped_modules(model)), None)
    fault = capped_fault(device, dtype, capped.head_dim) if capped is not None else None
    if fault is not None:
        wrong[CAPPED] = fault
    found = {name: fuse(model) for name, fuse in FUSE.items() if name not in wrong}
    taken = [f"{name} of {counted(number, 'module')}" for name, number in found.items() if number]
    notes = [f"fused kernels, tried on this GPU, compute the {', the '.join(taken)}"] if taken else []
    return notes + [
        f"torch's own operations compute the {', the '.join(name for name in wrong if wrong[name] == reason)}: {reason}"
        for reason in sorted(set(wrong.values()))
    ]
