"""Each fused form tried beside the plain one on the device that is to take it, before a run begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from loraft.errors import first_line
from loraft.kernels.fused.forms import fused_gated, fused_norm, fused_rotated, plain_gated, plain_rotated
from loraft.kernels.rms_norm import FORMULAS, plain_norm

NORMS, ROTARY, GATED = "norms", "rotary positions", "gated products"
NO_TRITON = "triton is not installed"
TOLERANCE = {torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""In the dtype's rounding: sums in another order, and what is rounded to the other side by that."""
COLUMNS, TOKENS, HEADS, KEY_HEADS, SIZE = 160, 33, 6, 2, 24
"""Sizes of a trial: none is a power of two, so that what is left over of a block is seen."""


def _norm_pairs() -> list[tuple[Callable[..., Any], ...]]:
    return [
        tuple(partial(form, epsilon=1e-6, offset=offset, rounds=rounds) for form in (fused_norm, plain_norm))
        for offset, rounds in FORMULAS
    ]


def _numbers(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """The same on every device."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def _inputs(name: str, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """What a form computes gradients by, and what it is given besides."""
    made = partial(_numbers, device, dtype)
    if name == NORMS:
        return [made(3, 11, COLUMNS)], [made(COLUMNS)]
    if name == GATED:
        return [made(3, 11, COLUMNS), 2 * made(11, 3, COLUMNS).view(3, 11, COLUMNS)], []
    query, key = made(2, TOKENS, HEADS, SIZE).transpose(1, 2), made(2, TOKENS, KEY_HEADS, SIZE).transpose(1, 2)
    angles = _numbers(device, torch.float32, 2, TOKENS, SIZE)
    return [query, key], [angles.cos().to(dtype), angles.sin().to(dtype)]


PAIRS: Mapping[str, Callable[[], Sequence[tuple[Callable[..., Any], ...]]]] = {
    NORMS: _norm_pairs,
    ROTARY: lambda: [(fused_rotated, plain_rotated)],
    GATED: lambda: [(partial(fused_gated, by_gelu=gelu), partial(plain_gated, by_gelu=gelu)) for gelu in (False, True)],
}
"""The fused and the plain form of each operation."""


def difference(name: str, device: str, dtype: torch.dtype) -> float:
    """How far outputs and gradients of the fused form are from those of the plain form, in the dtype's rounding."""
    worst = 0.0
    for forms in PAIRS[name]():
        found = [_results(form, *_inputs(name, device, dtype)) for form in forms]
        for mine, plain in zip(*found, strict=True):
            distance = (mine.double() - plain.double()).norm() / plain.double().norm()
            worst = max(worst, float(distance.nan_to_num(torch.inf)) / torch.finfo(dtype).eps)
    return worst


def _results(form: Callable[..., Any], by: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a form, and the gradients of their sum, weighted by other numbers."""
    leaves = [tensor.detach().requires_grad_() for tensor in by]
    outputs = form(*leaves, *given)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    weights = [_numbers(str(out.device), out.dtype, *out.shape, 1).squeeze(-1) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, weights)]


@cache
def faults(device: str, dtype: torch.dtype) -> Mapping[str, str]:
    """Why fused forms are not to be taken on a device, by their names; those that are not named can be."""
    if importlib.util.find_spec("triton") is None:
        return dict.fromkeys(PAIRS, NO_TRITON)
    found = {}
    for name in PAIRS:
        for tried in {torch.float32, dtype}:
            try:
                off = difference(name, device, tried)
            except Exception as error:  # whatever Triton, its compiler or the driver say
                found[name] = f"{type(error).__name__}: {first_line(error)}"
                break
            if off > TOLERANCE[tried]:
                found[name] = f"in {str(tried).removeprefix('torch.')} it is off by {off:.0f} times the rounding"
                break
    return found
