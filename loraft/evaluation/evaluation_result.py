"""What an evaluation found, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loraft.evaluation.bootstrap import CONFIDENCE, RESAMPLES, PairedDifference


@dataclass(frozen=True)
class Figure:
    """One model's figures.

    Attributes:
        name: What it is called.
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
        labels: The classes, in their order.
        matrix: `[right, predicted]`: how many rows of each class were given each class.
    """

    labels: Sequence[str]
    matrix: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        task: As a config says it.
        data: What the rows are.
        rows: How many there are.
        references: Those of them that have a right answer.
        tokens: The trained tokens that the loss is of; of a classifier the rows.
        measured: The figures of what was evaluated.
        baseline: Those of its base, where that was asked for.
        differences: What was evaluated minus its base, with the interval of each difference.
        signatures: How the figures were computed whose name does not say it.
        output: Where the rows were written.
        seconds: What it took, loading aside.
        confusion_matrix: What a classifier took for what; None of what writes text.
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
