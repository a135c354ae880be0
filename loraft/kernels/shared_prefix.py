"""Rows that begin with the same tokens, in a line that has that beginning once: computed once, for all of them.

All but attention looks at a token by itself; for attention the rows are written out, and what it gives is taken back.
A causal row gives the same for its beginning whatever comes behind it, so the losses are those of whole rows, and so
are the gradients: that of the beginning is the sum over the rows, taken in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loraft.figures import shared_beginning

LEAST_SHARE = 1 / 16
"""The share of a batch's tokens that must be saved: below it writing rows out costs as much."""


def shared_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with, of each of which some are left; 0 where that saves too little."""
    common = shared_beginning(min(rows), max(rows))  # in the order of their tokens nothing between them differs before
    prefix = min(common, min(map(len, rows)) - 1)
    return prefix if prefix * (len(rows) - 1) >= LEAST_SHARE * sum(map(len, rows)) else 0


class Places(NamedTuple):
    """Where the tokens of rows stand in the line that has their beginning once, and the other way around.

    Attributes:
        in_line: `[tokens of whole rows]`, of each its place in the line.
        in_rows: `[time]`, of each token of the line its place in the rows written out: the first one's for a beginning.
        beginnings: `[rows · prefix]`, the places of the beginnings in the rows written out.
    """

    in_line: Tensor
    in_rows: Tensor
    beginnings: Tensor


@lru_cache(maxsize=8)
def places_of(lengths: tuple[int, ...], prefix: int) -> Places:
    """The places of rows of these lengths, whole, that begin with the same `prefix` tokens."""
    starts = list(itertools.accumulate(lengths, initial=0))[:-1]
    own = list(itertools.accumulate((length - prefix for length in lengths), initial=0))[:-1]
    beginning = torch.arange(prefix)
    in_line = [torch.cat([beginning, torch.arange(prefix + at, at + n)]) for at, n in zip(own, lengths, strict=True)]
    in_rows = [torch.arange(start + prefix, start + n) for start, n in zip(starts, lengths, strict=True)]
    beginnings = torch.tensor(starts)[:, None] + beginning
    return Places(torch.cat(in_line), torch.cat([beginning, *in_rows]), beginnings.flatten())


def written_out(tensor: Tensor, lengths: tuple[int, ...], prefix: int) -> Tensor:
    """`[time, …]`, a line that has the beginning once, to `[tokens of whole rows, …]`."""
    rows: Tensor = _WrittenOut.apply(tensor, places_of(lengths, prefix), prefix)  # type: ignore[no-untyped-call]
    return rows


def taken_back(tensor: Tensor, lengths: tuple[int, ...], prefix: int) -> Tensor:
    """`[tokens of whole rows, …]` to `[time, …]`: the beginning as the first row has it."""
    line: Tensor = _TakenBack.apply(tensor, places_of(lengths, prefix))  # type: ignore[no-untyped-call]
    return line


class _WrittenOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Places, prefix: int) -> Tensor:
        ctx.places, ctx.prefix = places, prefix
        return tensor.index_select(0, places.in_line)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), places = grads, ctx.places
        line = gradient.index_select(0, places.in_rows)
        beginnings = gradient.index_select(0, places.beginnings).view(-1, ctx.prefix, *gradient.shape[1:])
        line[: ctx.prefix] = beginnings.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32))
        return line, None, None


class _TakenBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Places) -> Tensor:
        ctx.places, ctx.time = places, len(tensor)
        return tensor.index_select(0, places.in_rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = grads[0].new_zeros(ctx.time, *grads[0].shape[1:])
        return rows.index_copy_(0, ctx.places.in_rows, grads[0]), None
