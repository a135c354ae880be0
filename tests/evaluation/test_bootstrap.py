"""The interval of a difference, where all draws can be counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from loraft.evaluation import metrics
from loraft.evaluation.bootstrap import paired_differences
from loraft.evaluation.metrics import Counts, Figures, RowTally


def losses(*rows: float) -> Callable[[Counts | None], Figures]:
    sums = RowTally(metrics.losses(), keep=True)
    for row in rows:
        sums.add(row, 1)
    return sums.figures


def mean_of(*rows: float) -> Callable[[Counts | None], Figures]:
    def figures(counts: Counts | None) -> Figures:
        weights = np.ones(len(rows)) if counts is None else counts
        return {"mean": float(weights @ np.array(rows) / weights.sum())}

    return figures


def test_two_rows() -> None:
    """Each once in half of the draws, one of them twice in a quarter each: 95 % reach from the one to the other."""
    found = paired_differences(mean_of(0, 0), mean_of(1, 5), 2)["mean"]
    assert (found.difference, found.low, found.high) == (3, 1, 5)


def test_rows_are_drawn_in_pairs() -> None:
    """Rows of widely different losses, each better by exactly 1/2: of that the draws leave no doubt."""
    found = paired_differences(losses(1, 20, 300), losses(0.5, 19.5, 299.5), 3)["loss"]
    assert (found.low, found.difference, found.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_a_hundred_coins() -> None:
    """60 of 100 against 50 of 100 with no row in common: the interval is 0.1 ± 1.96 standard errors, to a tenth."""
    first, second = [1] * 50 + [0] * 50, [1, 0] * 40 + [1] * 20
    apart = np.array(second) - np.array(first)
    error = apart.std() / math.sqrt(100)
    found = paired_differences(mean_of(*first), mean_of(*second), 100)["mean"]
    assert found.difference == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.2 * error)


def test_the_same_seed_gives_the_same_interval() -> None:
    figures = mean_of(*range(40)), mean_of(*(row**1.1 for row in range(40)))
    assert paired_differences(*figures, 40, seed=3) == paired_differences(*figures, 40, seed=3)
    assert paired_differences(*figures, 40, seed=3) != paired_differences(*figures, 40, seed=4)


def test_infinities_have_no_interval() -> None:
    found = paired_differences(losses(1e5, 1e6), losses(1e6, 1e5), 2)
    assert found["loss"].low < 0 < found["loss"].high
    assert math.isnan(found["perplexity"].low)


def test_one_row_tells_no_interval() -> None:
    """Every draw is that row: the interval would have no width, and be sure of what one row happens to be."""
    found = paired_differences(mean_of(0), mean_of(1), 1)["mean"]
    assert found.difference == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_there_must_be_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        paired_differences(mean_of(), mean_of(), 0)
