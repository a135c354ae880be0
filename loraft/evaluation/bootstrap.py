"""How sure a difference is: a paired bootstrap over the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from loraft.evaluation.accumulators import Counts, Figures

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class PairedDifference:
    """One figure of two models on the same rows.

    Attributes:
        difference: The second model's figure minus the first's.
        low: The lower end of its confidence interval.
        high: The upper end.
    """

    difference: float
    low: float
    high: float


def paired_differences(
    first: Callable[[Counts | None], Figures],
    second: Callable[[Counts | None], Figures],
    rows: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Mapping[str, PairedDifference]:
    """The difference of each figure of two models, with a confidence interval of 95 %.

    As many rows as there are are drawn, with replacement, and both models are measured on the same draw; the interval
    runs between the quantiles of the differences of many such draws.

    Args:
        first: Figures of one model, of each row as often as it is told.
        second: The same of the other model.
        rows: How many rows there are.
        resamples: How often rows are drawn.
        seed: The seed of the draws.

    Raises:
        ValueError: There are no rows.

    Source: Efron and Tibshirani 1993, the percentile interval; paired as in Koehn 2004.
    """
    if rows < 1:
        raise ValueError("a bootstrap over no rows")
    random = np.random.Generator(np.random.PCG64(seed))
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        counts = np.bincount(random.integers(rows, size=rows), minlength=rows)
        for name, value in _minus(second(counts), first(counts)).items():
            drawn.setdefault(name, []).append(value)
    whole = _minus(second(None), first(None))
    return {name: PairedDifference(whole[name], *_interval(values)) for name, values in drawn.items()}


def _minus(figures: Figures, others: Figures) -> dict[str, float]:
    return {name: value - others[name] for name, value in figures.items()}


def _interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of the values; not a number where some are not, as the difference of two infinities."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
