"""The arithmetic of merging: what a weight becomes when low-rank updates are folded into it.

This module knows numbers alone, in float32, a few rows at a time: the memory it takes does not depend on the weight's
size. It refuses to know names, files and peft.

    LoRA   W' = W + Σ s · B A            (s = weight · alpha / r, with rsLoRA weight · alpha / √r)
    DoRA   W' = m ⊙ (W + s · B A) / ‖W + s · B A‖, the norm of each output's row

Source: Hu et al. 2021 (https://arxiv.org/abs/2106.09685), equation 3; Kalajdzievski 2023, rsLoRA
(https://arxiv.org/abs/2312.03732); Liu et al. 2024, DoRA (https://arxiv.org/abs/2402.09353), equation 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Update", "cast_pieces", "scale_of", "updated", "updated_pieces"]

PIECE = 1 << 18
"""The numbers of a piece: in float32 a MiB, which stays in the cache from reading to writing."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one adapter makes of one weight.

    Attributes:
        a: `[r, in]`.
        b: `[out, r]`.
        scale: s, the weight of the adapter included.
        magnitude: m `[out]`, with DoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether it is zero, as an adapter that was never trained is."""
        zero = self.scale == 0 or not bool(self.b.any()) or not bool(self.a.any())
        return zero and self.magnitude is None


def scale_of(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """The factor of B A: alpha / r, or with rsLoRA alpha / √r."""
    return alpha / rank**0.5 if use_rslora else alpha / rank


def updated(weight: Tensor, updates: Sequence[Update], *, transposed: bool = False) -> Tensor:
    """The weight with all updates in it, whole, in its own dtype.

    Args:
        weight: `[out, in]`, or `[in, out]` where `transposed`.
        updates: At least one; where one is DoRA it is alone.
        transposed: The weight is stored as GPT-2's Conv1D and embeddings store it.
    """
    result = torch.empty_like(weight)
    row = 0
    for piece in updated_pieces(weight, updates, weight.dtype, transposed=transposed):
        result[row : row + len(piece)] = piece
        row += len(piece)
    return result


def updated_pieces(
    weight: Tensor, updates: Sequence[Update], dtype: torch.dtype, *, transposed: bool = False
) -> Iterator[Tensor]:
    """The weight with all updates in it, a few rows at a time: summed in float32, and cast once.

    A piece is overwritten when the next one is asked for.
    """
    updates = [_in_float32(update) for update in updates]
    magnitude = updates[0].magnitude
    factor = None
    if magnitude is not None and transposed:  # a norm is over all rows here, so they are gone through twice
        factor = magnitude / _column_norms(weight, updates)
    for start, summed in _sums(weight, updates, transposed=transposed):
        if factor is not None:
            summed.mul_(factor)
        elif magnitude is not None:
            norms = torch.linalg.vector_norm(summed, dim=1)
            summed.mul_((magnitude[start : start + len(summed)] / norms)[:, None])
        yield summed.to(dtype)


def cast_pieces(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """A weight in another dtype, a few rows at a time; in its own it is given as it is, whole."""
    if weight.dtype == dtype:
        yield weight
    else:
        flat = weight.reshape(-1)
        yield from (flat[start : start + PIECE].to(dtype) for start in range(0, len(flat), PIECE))


def _in_float32(update: Update) -> Update:
    magnitude = None if update.magnitude is None else update.magnitude.float()
    return Update(update.a.float(), update.b.float(), update.scale, magnitude)


def _sums(weight: Tensor, updates: Sequence[Update], *, transposed: bool) -> Iterator[tuple[int, Tensor]]:
    """W + Σ s · B A, as the weight is stored, a few rows at a time: the first row's index, and the rows.

    The rows lie in one buffer that every turn writes over: fresh memory for each would take most of the time.
    """
    rows = min(max(1, PIECE // weight.shape[1]), max(1, weight.shape[0]))
    buffer = torch.empty((rows, weight.shape[1]), dtype=torch.float32)
    for start in range(0, weight.shape[0], rows):
        stop = min(start + rows, weight.shape[0])
        summed = buffer[: stop - start]
        summed.copy_(weight[start:stop])
        for update in updates:
            if transposed:
                summed.addmm_(update.a[:, start:stop].T, update.b.T, alpha=update.scale)
            else:
                summed.addmm_(update.b[start:stop], update.a, alpha=update.scale)
        yield start, summed


def _column_norms(weight: Tensor, updates: Sequence[Update]) -> Tensor:
    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for _, summed in _sums(weight, updates, transposed=True):
        squares += summed.double().square().sum(dim=0)
    return squares.sqrt().float()
