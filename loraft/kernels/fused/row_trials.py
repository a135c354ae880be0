"""Attention with capped scores tried beside its products written out, on the device that is to take it."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch
from torch import Tensor

from loraft.errors import first_line
from loraft.kernels.fused.capped_rows import capped_attention
from loraft.kernels.fused.trials import NO_TRITON
from loraft.kernels.packed_attention import attend_rows

CAPPED = "attention with capped scores"
HEADS, KEY_HEADS, CAP, SCALE = 4, 2, 5.0, 0.3
TRIED: tuple[tuple[list[int], int | None], ...] = (([130, 1, 64, 233], None), ([300, 257], 33))
"""Two lengths of all rows, so that what is compiled for any length is tried too."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the norm, from products in float32: weights and outputs are rounded."""


@cache
def capped_fault(device: str, dtype: torch.dtype, head_size: int) -> str | None:
    """Why all rows at once are not to be taken for heads of a size; None where they can be."""
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON
    try:
        with warnings.catch_warnings(action="ignore"):  # what a compiler would have faster is no fault
            off = max(distance(device, dtype, head_size, lengths, window) for lengths, window in TRIED)
    except Exception as error:  # whatever the compiler, Triton or the driver say
        return f"{type(error).__name__}: {first_line(error)}"
    return f"it is off by {off:.1e} of the norm" if not off <= TOLERANCE[dtype] else None


def distance(device: str, dtype: torch.dtype, head_size: int, lengths: list[int], window: int | None) -> float:
    """How far outputs and gradients are from those written out in float32, of their norm; in inference mode too."""
    given = _numbers(device, dtype, sum(lengths), head_size)
    mine = _results(given, lengths, window, at_once=True)
    plain = _results([tensor.float() for tensor in given], lengths, window, at_once=False)
    with torch.inference_mode():
        mine.append(_attend(given[:3], lengths, window, at_once=True))
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(mine, [*plain, plain[0]], strict=True))


def _numbers(device: str, dtype: torch.dtype, time: int, head_size: int) -> list[Tensor]:
    """Queries, keys, values, and the factors of the outputs in the sum whose gradients are taken."""
    generator = torch.Generator().manual_seed(time)
    shapes = [(time, heads, head_size) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def _attend(given: list[Tensor], lengths: list[int], window: int | None, *, at_once: bool) -> Tensor:
    query, key, value = given
    if at_once:
        return capped_attention(query, key, value, lengths, SCALE, cap=CAP, window=window)
    return attend_rows(query, key, value, lengths, SCALE, softcap=CAP, window=window)


def _results(given: list[Tensor], lengths: list[int], window: int | None, *, at_once: bool) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in given[:3]]
    with torch.enable_grad():
        out = _attend(leaves, lengths, window, at_once=at_once)
        return [out.detach(), *torch.autograd.grad(out, leaves, given[3])]
