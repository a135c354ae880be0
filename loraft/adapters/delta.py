"""The arithmetic of merging: what a weight becomes when low-rank updates are folded into it.

All is computed in float32, a few rows at a time: the memory it takes does not depend on the size of the weight.

    LoRA   W' = W + Σ s · B A            (s = weight · alpha / r, with rsLoRA weight · alpha / √r)
    DoRA   W' = m ⊙ (W + s · B A) / ‖W + s · B A‖, the norm of each output's row

Source: Hu et al. 2021 (https://arxiv.org/abs/2106.09685), equation 3; Kalajdzievski 2023, rsLoRA
(https://arxiv.org/abs/2312.03732); Liu et al. 2024, DoRA (https://arxiv.org/abs/2402.09353), equation 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import local

import torch
from torch import Tensor

PIECE = 1 << 18
"""The numbers of a piece: in float32 a MiB, which stays in the cache from reading to writing."""


Run = Callable[[Callable[[slice], Tensor], Iterable[slice]], Iterable[Tensor]]
"""Makes a piece of each span, in their order."""
_own = local()
"""The buffer of each thread."""


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
    result = torch.empty(weight.shape, dtype=weight.dtype)
    row = 0
    for piece in updated_pieces(weight, updates, weight.dtype, transposed=transposed):
        result[row : row + len(piece)] = piece
        row += len(piece)
    return result


def updated_pieces(
    weight: Tensor, updates: Sequence[Update], dtype: torch.dtype, *, transposed: bool = False, run: Run = map
) -> Iterator[Tensor]:
    """The weight with all updates in it, a few rows at a time: summed in float32, and cast once.

    Args:
        weight: `[out, in]`, or `[in, out]` where `transposed`.
        updates: At least one; where one is DoRA it is alone.
        dtype: Of the result.
        transposed: The weight is stored as GPT-2's Conv1D and embeddings store it.
        run: What makes the pieces: `map`, or something like it that works ahead.
    """
    updates = [_in_float32(update) for update in updates]
    magnitude = updates[0].magnitude
    by_column = None
    if magnitude is not None and transposed:  # a norm is over all rows here, so they are gone through twice
        by_column = magnitude / _column_norms(weight, updates)

    def piece(rows: slice) -> Tensor:
        summed = _sum(weight, updates, rows, transposed=transposed)
        if by_column is not None:
            summed.mul_(by_column)
        elif magnitude is not None:
            summed.mul_((magnitude[rows] / torch.linalg.vector_norm(summed, dim=1))[:, None])
        return summed.clone() if dtype == torch.float32 else summed.to(dtype)

    yield from run(piece, _row_spans(weight))


def cast_pieces(weight: Tensor, dtype: torch.dtype, *, run: Run = map) -> Iterator[Tensor]:
    """A weight in another dtype, a piece at a time; in its own it is given as it is, whole."""
    if weight.dtype == dtype:
        yield weight
        return
    flat = weight.reshape(-1)
    spans = (slice(start, start + PIECE) for start in range(0, len(flat), PIECE))
    yield from run(lambda span: flat[span].to(dtype), spans)


def _in_float32(update: Update) -> Update:
    magnitude = None if update.magnitude is None else update.magnitude.float()
    return Update(update.a.float(), update.b.float(), update.scale, magnitude)


def _row_spans(weight: Tensor) -> Iterator[slice]:
    rows = max(1, PIECE // max(1, weight.shape[1]))
    return (slice(start, min(start + rows, len(weight))) for start in range(0, len(weight), rows))


def _sum(weight: Tensor, updates: Sequence[Update], rows: slice, *, transposed: bool) -> Tensor:
    """Some rows of W + Σ s · B A, as the weight is stored; the next sum of the same thread overwrites them.

    Fresh memory for each would take most of the time: the system clears it page by page.
    """
    count, width = rows.stop - rows.start, weight.shape[1]
    buffer: Tensor | None = getattr(_own, "buffer", None)
    if buffer is None or len(buffer) < count * width:
        buffer = _own.buffer = torch.empty(max(PIECE, count * width), dtype=torch.float32)
    summed = buffer[: count * width].view(count, width)
    summed.copy_(weight[rows])
    for update in updates:
        if transposed:
            summed.addmm_(update.a[:, rows].T, update.b.T, alpha=update.scale)
        else:
            summed.addmm_(update.b[rows], update.a, alpha=update.scale)
    return summed


def _column_norms(weight: Tensor, updates: Sequence[Update]) -> Tensor:
    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in _row_spans(weight):
        squares += _sum(weight, updates, rows, transposed=True).double().square().sum(dim=0)
    return squares.sqrt().float()
