"""Figures that grow row by row: sums are held, and no row.

A figure of many rows is a function of sums over them: a loss of losses and tokens, BLEU of n-gram counts, accuracy of
hits. Where two models are to be compared by a bootstrap, the few numbers that each row adds are kept, so that the
figure can be had of rows drawn anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loraft.figures import perplexity

Counts = NDArray[np.int64]
"""`[rows]`, how often each row counts."""
Figures = Mapping[str, float]


class Sums:
    """Figures of sums over rows."""

    def __init__(self, size: int, figures: Callable[[NDArray[np.float64]], Figures], *, keep: bool = False) -> None:
        """Begin at nothing.

        Args:
            size: How many numbers a row adds.
            figures: From the sums `[size]` to the figures.
            keep: Keep what each row adds, for `figures(counts)`.
        """
        self._figures = figures
        self._sums = np.zeros(size)
        self._kept = array("d") if keep else None

    def add(self, numbers: Sequence[float]) -> None:
        """Count one more row, which adds these numbers."""
        self._sums += numbers
        if self._kept is not None:
            self._kept.extend(numbers)

    def figures(self, counts: Counts | None = None) -> Figures:
        """The figures by name: of each row once, or as often as `counts` says where the rows were kept."""
        if counts is None:
            return self._figures(self._sums)
        if self._kept is None:
            raise ValueError("the rows were not kept")
        rows = np.frombuffer(self._kept).reshape(-1, len(self._sums))
        return self._figures(counts @ rows)


@dataclass(frozen=True)
class RowMetric:
    """A way to measure answers by their references, row by row.

    Attributes:
        names: The figures that it gives.
        size: How many numbers a row adds.
        numbers: What a prediction with its reference adds.
        figures: From the sums `[size]` to the figures.
        signature: What tells this way of computing from others that have the same name; None where there are none.
    """

    names: tuple[str, ...]
    size: int
    numbers: Callable[[str, str], Sequence[float]]
    figures: Callable[[NDArray[np.float64]], Figures]
    signature: str | None = None


class RowTally:
    """The figures of a `RowMetric` over the answers so far."""

    def __init__(self, metric: RowMetric, *, keep: bool = False) -> None:
        """Begin at nothing; the arguments are those of `Sums`."""
        self.metric = metric
        self._sums = Sums(metric.size, metric.figures, keep=keep)

    def add(self, prediction: str, reference: str) -> None:
        """Count one more answer."""
        self._sums.add(self.metric.numbers(prediction, reference))

    def figures(self, counts: Counts | None = None) -> Figures:
        """The figures by name, as those of `Sums`."""
        return self._sums.figures(counts)


def loss_sums(*, keep: bool = False, of_text: bool = True) -> Sums:
    """`loss` and `perplexity` of rows that add their negative log-likelihood, in nats, and their trained tokens.

    Args:
        keep: Keep what each row adds.
        of_text: The rows are texts; False of classes, each a row's one decision, of which there is no perplexity.

    Source: total negative log-likelihood / total tokens; a mean of means would weigh the tokens of short rows more.
    """
    return Sums(2, _of_losses if of_text else _of_decisions, keep=keep)


def _of_losses(sums: NDArray[np.float64]) -> Figures:
    total, tokens = float(sums[0]), int(sums[1])
    return {"loss": total / tokens, "perplexity": perplexity(total, tokens)}


def _of_decisions(sums: NDArray[np.float64]) -> Figures:
    return {"loss": float(sums[0] / sums[1])}
