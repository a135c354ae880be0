"""Figures that grow row by row, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loraft.evaluation.metrics import RowTally, losses, pair_figures


def test_c38_the_loss_is_of_the_tokens_and_not_of_the_rows() -> None:
    """C38: one token at ln 16 and three at 0: the mean of the rows' means would be ln(16) / 2."""
    sums = RowTally(losses())
    sums.add(math.log(16), 1)
    sums.add(0.0, 3)
    assert sums.figures()["loss"] == pytest.approx(math.log(16) / 4)
    assert sums.figures()["perplexity"] == pytest.approx(2)


def test_rows_count_as_often_as_is_said() -> None:
    sums = RowTally(losses(), keep=True)
    for numbers in ((1.0, 1), (4.0, 2), (9.0, 3)):
        sums.add(*numbers)
    assert sums.figures(np.array([1, 1, 1])) == sums.figures()
    assert sums.figures(np.array([2, 0, 1]))["loss"] == pytest.approx((2 * 1 + 9) / (2 * 1 + 3))


def test_rows_that_were_not_kept_cannot_be_drawn() -> None:
    sums = RowTally(losses())
    sums.add(1.0, 1)
    with pytest.raises(ValueError, match="not kept"):
        sums.figures(np.array([1]))


def test_pairs_are_right_where_the_better_answer_has_the_higher_reward_and_half_where_neither_has() -> None:
    sums = RowTally(pair_figures(), keep=True)
    for rewards in ((2.0, 1.0), (0.0, 3.0), (1.0, 1.0), (1.0, -1.0)):
        sums.add(*rewards)
    assert sums.figures() == {"accuracy": 0.625, "margin": 0.0, "chosen_reward": 1.0, "rejected_reward": 1.0}
    assert sums.figures(np.array([4, 0, 0, 0]))["accuracy"] == 1
