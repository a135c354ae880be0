"""Measures of labels, against values worked out by hand and against scikit-learn on the rows themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from loraft.evaluation.metrics import LabelTally
from loraft.tasks.seq_cls import LABEL_METRICS

LABELS = ("bad", "fair", "good")


def tallied(right: str, given: str, *, keep: bool = False) -> LabelTally:
    """Each row is a letter: the first of its label."""
    named = {label[0]: label for label in LABELS}
    tally = LabelTally(LABELS, keep=keep)
    for one, other in zip(right, given, strict=True):
        tally.add(named[other], named[one])
    return tally


def test_two_labels_by_hand() -> None:
    """Good is found twice of twice, and said once of a bad row: F1 is 4/5 and 2/3; MCC is (2·1 - 1·0) / √(3·2·2·1)."""
    tally = tallied("ggbb", "gggb")
    assert tally.confusion_matrix == [[1, 0, 1], [0, 0, 0], [0, 0, 2]]
    figures = tally.figures()
    assert figures["accuracy"] == pytest.approx(3 / 4)
    assert figures["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert figures["mcc"] == pytest.approx(2 / math.sqrt(12))


def test_three_labels_as_scikit_learn_has_the_rows() -> None:
    right, given = "gfbgfbgfbgg", "gfbbffgggfb"
    figures = tallied(right, given).figures()
    assert figures["accuracy"] == pytest.approx(accuracy_score(list(right), list(given)))
    assert figures["macro_f1"] == pytest.approx(f1_score(list(right), list(given), average="macro"))
    assert figures["mcc"] == pytest.approx(matthews_corrcoef(list(right), list(given)))


@pytest.mark.parametrize(("given", "accuracy"), [("ggg", 1.0), ("bbb", 0.0)])
def test_one_label_alone_has_no_correlation(given: str, accuracy: float) -> None:
    """Where all rows are of one label, there is nothing to go with anything: 0, as scikit-learn has it."""
    figures = tallied("ggg", given).figures()
    assert figures == {"accuracy": accuracy, "macro_f1": accuracy, "mcc": 0.0}


def test_rows_drawn_anew_are_rows_measured_anew() -> None:
    kept = tallied("gfbg", "gfbb", keep=True)
    assert kept.figures(np.array([0, 2, 1, 1])) == pytest.approx(tallied("ffbg", "ffbb").figures())
    assert kept.figures(np.array([1, 1, 1, 1])) == kept.figures()
    assert tuple(kept.figures()) == tuple(LABEL_METRICS)
    with pytest.raises(ValueError, match="not kept"):
        tallied("g", "g").figures(np.array([1]))


def test_a_label_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="ugly"):
        LabelTally(LABELS).add("ugly", "good")
