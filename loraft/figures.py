"""Figures that several layers give, from losses and counts, how lists are told, and where sequences part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun, and whatever else follows: `1 row is`, `1,200 rows are`; `many` is `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shared_beginning(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of the longest beginning that two sequences share."""
    if type(one) is not type(other):
        one, other = list(one), list(other)
    alike, apart = 0, min(len(one), len(other)) + 1
    while apart - alike > 1:  # by stretches: a text of 36,000 characters takes 6 µs, and 2.7 ms one by one
        middle = (alike + apart) // 2
        alike, apart = (middle, apart) if one[alike:middle] == other[alike:middle] else (alike, middle)
    return alike


def perplexity(negative_log_likelihood: float, tokens: int = 1) -> float:
    """exp(negative log-likelihood / tokens): infinite where that is beyond a float.

    Args:
        negative_log_likelihood: The sum over all trained tokens, natural logarithm. A mean of the means of batches
            would weigh the tokens of short batches more.
        tokens: How many tokens were summed over; 1 where the loss is their mean already.

    Raises:
        ValueError: If there are no tokens.

    Source: Jurafsky and Martin, Speech and Language Processing, 3rd edition, chapter 3.
    """
    if tokens < 1:
        raise ValueError("perplexity of no tokens")
    try:
        return math.exp(negative_log_likelihood / tokens)
    except OverflowError:
        return math.inf


def in_order(better: float, worse: float) -> float:
    """1 where the better answer of a pair has the higher reward, 0 where the other has, 1/2 where both have the same.

    NaN where their difference is no number.
    """
    apart = better - worse
    return apart if math.isnan(apart) else (1 + (apart > 0) - (apart < 0)) / 2


def label_figures(
    right: NDArray[np.float64 | np.int64], given: NDArray[np.float64 | np.int64], hits: NDArray[np.float64 | np.int64]
) -> dict[str, float]:
    """`accuracy`, and `macro_f1` over the labels that are right or given in some row, as scikit-learn has both.

    Args:
        right: `[label]`, how many rows are of each.
        given: How many were given each.
        hits: How many of them were right.
    """
    both = right + given
    seen = both > 0
    f1 = 2 * hits[seen] / both[seen]
    return {"accuracy": float(hits.sum() / right.sum()), "macro_f1": float(f1.mean())}
