"""Metrics of labels: accuracy, macro-F1, Matthews' correlation, and the confusion matrix they come from."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loraft.evaluation.accumulators import Counts, Figures
from loraft.figures import label_figures

Margin = NDArray[np.float64]
"""A number for each label: `[label]`."""


class LabelTally:
    """The figures of predicted labels: a matrix is held, and no row."""

    def __init__(self, labels: Sequence[str], *, keep: bool = False) -> None:
        """Begin at nothing.

        Args:
            labels: The names of all labels, in their order.
            keep: Keep each row's pair of labels, for `figures(counts)`.
        """
        self.labels = tuple(labels)
        self._places = {label: place for place, label in enumerate(self.labels)}
        self._cells = np.zeros(len(self.labels) ** 2, dtype=np.int64)
        self._kept = array("q") if keep else None

    def add(self, prediction: str, reference: str) -> None:
        """Count one more row.

        Raises:
            KeyError: One of the two is none of the labels.
        """
        cell = self._places[reference] * len(self.labels) + self._places[prediction]
        self._cells[cell] += 1
        if self._kept is not None:
            self._kept.append(cell)

    @property
    def confusion_matrix(self) -> list[list[int]]:
        """`[right, predicted]`: how many rows of each label were given each label."""
        return [list(map(int, row)) for row in self._cells.reshape(len(self.labels), -1)]

    def figures(self, counts: Counts | None = None) -> Figures:
        """`accuracy`, `macro_f1` and `mcc`; of each row once, or as often as `counts` says where rows were kept.

        A correlation where one label stands alone is 0, as scikit-learn has it, whose functions are too slow for a
        bootstrap's thousand draws.

        Source: Matthews' correlation of several labels is Gorodkin's, 2004.
        """
        right, given, hits = self._margins() if counts is None else self._drawn(counts)
        rows = right.sum()
        spread = (rows**2 - given @ given) * (rows**2 - right @ right)
        mcc = float((hits.sum() * rows - right @ given) / np.sqrt(spread)) if spread > 0 else 0.0
        return {**label_figures(right, given, hits), "mcc": mcc}

    def _margins(self) -> tuple[Margin, Margin, Margin]:
        """`[label]`: how many rows are of each label, were given it, and both."""
        matrix = self._cells.reshape(len(self.labels), -1).astype(np.float64)
        return matrix.sum(1), matrix.sum(0), matrix.diagonal()

    def _drawn(self, counts: Counts) -> tuple[Margin, Margin, Margin]:
        """The same of rows drawn anew, without their matrix: a thousand classes have a million cells in each draw."""
        if self._kept is None:
            raise ValueError("the rows were not kept")
        right, given = np.divmod(np.frombuffer(self._kept, dtype=np.int64), len(self.labels))
        sums = (counts, counts, counts * (right == given))
        of_rows, of_answers, hits = (
            np.bincount(labels, weights=weights, minlength=len(self.labels)).astype(np.float64)
            for labels, weights in zip((right, given, right), sums, strict=True)
        )
        return of_rows, of_answers, hits
