"""The difference of two models on the same rows, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from loraft.evaluation.metrics import Counts, Figures

Drawn = Callable[[Counts | None], Figures]
"""A model's figures of rows, each of which counts as often as is told; of each once for None."""
BOOTSTRAP = {"confidence": 0.95, "resamples": 1000}


@dataclass(frozen=True)
class PairedDifference:
    """One figure of a second model minus that of a first on the same rows, and the ends of its confidence interval."""

    difference: float
    low: float
    high: float


def paired_differences(first: Drawn, second: Drawn, rows: int, *, seed: int = 0) -> Mapping[str, PairedDifference]:
    """The difference of each figure of two models, with a confidence interval of 95 %.

    As many rows as there are are drawn, with replacement, and both models are measured on the same draw; the interval
    runs between the quantiles of the differences of many such draws.

    Source: Efron and Tibshirani 1993, the percentile interval; paired as in Koehn 2004.
    """
    if rows < 1:
        raise ValueError("a bootstrap over no rows")

    def minus(figures: Figures, others: Figures) -> dict[str, float]:
        return {name: value - others[name] for name, value in figures.items()}

    quantiles = [(1 - BOOTSTRAP["confidence"]) / 2, (1 + BOOTSTRAP["confidence"]) / 2]
    random = np.random.Generator(np.random.PCG64(seed))
    drawn: dict[str, list[float]] = {}
    for _ in range(int(BOOTSTRAP["resamples"])):
        counts = np.bincount(random.integers(rows, size=rows), minlength=rows)
        for name, value in minus(second(counts), first(counts)).items():
            drawn.setdefault(name, []).append(value)
    found, whole = {}, minus(second(None), first(None))
    for name, values in drawn.items():
        # Not a number where some are not, as the difference of two infinities; of one row all draws are the same.
        known = rows > 1 and all(map(math.isfinite, values))
        ends = np.quantile(values, quantiles) if known else (math.nan, math.nan)
        found[name] = PairedDifference(whole[name], *map(float, ends))
    return found
