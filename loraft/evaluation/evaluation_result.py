"""What an evaluation found, as values, and how far two models' figures are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loraft.evaluation.metrics import Counts, Figures

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class PairedDifference:
    """One figure of a second model minus that of a first on the same rows, and the ends of its confidence interval."""

    difference: float
    low: float
    high: float


def paired_differences(
    first: Callable[[Counts | None], Figures],
    second: Callable[[Counts | None], Figures],
    rows: int,
    *,
    seed: int = 0,
) -> Mapping[str, PairedDifference]:
    """The difference of each figure of two models, with a confidence interval of 95 %.

    As many rows as there are are drawn, with replacement, and both models are measured on the same draw; the interval
    runs between the quantiles of the differences of many such draws.

    Args:
        first: Figures of one model, of each row as often as it is told.
        second: The same of the other model.
        rows: How many rows there are.
        seed: The seed of the draws.

    Raises:
        ValueError: There are no rows.

    Source: Efron and Tibshirani 1993, the percentile interval; paired as in Koehn 2004.
    """
    if rows < 1:
        raise ValueError("a bootstrap over no rows")
    random = np.random.Generator(np.random.PCG64(seed))
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
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


@dataclass(frozen=True)
class Figure:
    """One model's figures.

    Attributes:
        loss: Negative log-likelihood a trained token, in nats; of a classifier a row.
        perplexity: exp(loss); None of a classifier.
        metrics: The other figures by name.
        cut: Of its answers, those that the limit ended.
    """

    name: str
    loss: float
    perplexity: float | None
    metrics: Mapping[str, float]
    cut: int

    @property
    def figures(self) -> Mapping[str, float]:
        """All figures by name."""
        of_text = {} if self.perplexity is None else {"perplexity": self.perplexity}
        return {"loss": self.loss, **of_text, **self.metrics}


@dataclass(frozen=True)
class Confusion:
    """Which classes were taken for which.

    Attributes:
        matrix: `[right, predicted]`: how many rows of each class were given each class.
    """

    labels: Sequence[str]
    matrix: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        task: As a config says it.
        data: What the rows are, in a few words.
        rows: How many there are.
        references: Those of them that have a right answer.
        tokens: The trained tokens that the loss is of; of a classifier the rows.
        differences: What was evaluated minus its base, with the interval of each difference.
        signatures: How the figures were computed whose name does not say it.
        seconds: What it took, loading aside.
        confusion_matrix: None of what writes text.
    """

    task: str
    data: str
    rows: int
    references: int
    tokens: int
    measured: Figure
    baseline: Figure | None
    differences: Mapping[str, PairedDifference]
    signatures: Mapping[str, str]
    output: Path | None
    seconds: float
    confusion_matrix: Confusion | None = None

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it: the figures of what was evaluated stand at the top."""
        shown = asdict(self)
        measured = shown.pop("measured")
        del shown["differences"]
        if self.baseline is not None:
            differences = {name: asdict(each) for name, each in self.differences.items()}
            shown["baseline"] |= {"differences": differences, "confidence": CONFIDENCE, "resamples": RESAMPLES}
        return {**measured, **shown}
