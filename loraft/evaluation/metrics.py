"""Figures that grow row by row: sums are held, and no row.

A figure of many rows is a function of sums over them: a loss of losses and tokens, BLEU of n-gram counts. For a
bootstrap of two models the few numbers that each row adds are kept, so that the figure can be had of rows drawn anew.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from loraft.figures import in_order, label_figures, perplexity
from loraft.tasks.task import ROUGE

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
"""`[rows]`, how often each row counts."""
Figures = Mapping[str, float]


@dataclass(frozen=True)
class RowMetric:
    """A way to measure rows, one by one, by a few numbers of each.

    Attributes:
        numbers: What a row adds, `[size]`: a prediction with its reference, say.
        figures: From the sums `[size]` to the figures.
        signature: What tells this way of computing from others that have the same name; None where there are none.
    """

    names: tuple[str, ...]
    size: int
    numbers: Callable[..., Sequence[float]]
    figures: Callable[[Floats], Figures]
    signature: str | None = None


class RowTally:
    """The figures of a metric over the rows so far; what each row adds is kept for `figures(counts)` if it is to be."""

    def __init__(self, metric: RowMetric, *, keep: bool = False) -> None:
        self.metric = metric
        self._sums = np.zeros(metric.size)
        self._kept = array("d") if keep else None

    def add(self, *row: object) -> None:
        """Count one more row: a prediction and its reference, or what else the metric is of."""
        numbers = self.metric.numbers(*row)
        self._sums += numbers
        if self._kept is not None:
            self._kept.extend(numbers)

    def figures(self, counts: Counts | None = None) -> Figures:
        """The figures by name: of each row once, or as often as `counts` says where the rows were kept."""
        if counts is None:
            return self.metric.figures(self._sums)
        if self._kept is None:
            raise ValueError("the rows were not kept")
        rows = np.frombuffer(self._kept).reshape(-1, len(self._sums))
        return self.metric.figures(counts @ rows)


def losses(*, of_text: bool = True) -> RowMetric:
    """`loss` and `perplexity` of rows that add their negative log-likelihood, in nats, and their trained tokens.

    Where the rows are not `of_text` each is one decision, of which there is no perplexity.

    Source: total negative log-likelihood / total tokens; a mean of means would weigh the tokens of short rows more.
    """

    def figures(sums: Floats) -> Figures:
        total, tokens = float(sums[0]), int(sums[1])
        return {"loss": total / tokens, **({"perplexity": perplexity(total, tokens)} if of_text else {})}

    return RowMetric(("loss", "perplexity") if of_text else ("loss",), 2, lambda *row: row, figures)


def _means(names: tuple[str, ...], numbers: Callable[..., Sequence[float]], signature: str | None = None) -> RowMetric:
    """The means over rows of `numbers`, one of each name."""

    def figures(sums: Floats) -> Figures:
        return {name: float(total / sums[-1]) for name, total in zip(names, sums, strict=False)}

    return RowMetric(names, len(names) + 1, lambda *row: (*numbers(*row), 1), figures, signature)


def pair_figures() -> RowMetric:
    """The figures of pairs that add their two rewards: the share in the right order, and what is so on average.

    A reference that is compared with itself rewards all answers alike, and has half of the pairs in order.
    """

    def numbers(chosen: float, rejected: float) -> Sequence[float]:
        return in_order(chosen, rejected), chosen - rejected, chosen, rejected

    return _means(("accuracy", "margin", "chosen_reward", "rejected_reward"), numbers)


def rouge() -> RowMetric:
    """ROUGE-1, ROUGE-2 and ROUGE-L: the mean of the rows' F-measures, 0 to 1: Lin 2004, as rouge-score computes it.

    It reads only the letters a to z and digits: in other scripts it says nothing.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(ROUGE, tokenizer=DefaultTokenizer(use_stemmer=False))

    def numbers(prediction: str, reference: str) -> Sequence[float]:
        scores = scorer.score(reference, prediction)
        return [scores[name].fmeasure for name in ROUGE]

    signature = f"measure:f1|stemmer:no|script:a-z0-9|version:{version('rouge-score')}"
    return _means(ROUGE, numbers, signature)


def beyond_rouge(names: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    """A sentence where right answers have nothing that ROUGE reads: their rows count as 0, whatever the answer."""
    lacking = sum(re.search("[a-z0-9]", text.lower()) is None for text in references)
    if lacking and not {*ROUGE}.isdisjoint(names):
        yield (
            f"ROUGE reads the letters a to z and digits alone: {lacking:,} of {len(references):,} right answers have "
            "none of them, and count as 0"
        )


def _sacrebleu(name: Literal["BLEU", "CHRF"]) -> RowMetric:
    """A measure of sacrebleu's, taken apart where its own bootstrap takes it apart: counts of a row, figure of sums."""
    from sacrebleu import metrics

    metric: Metric = getattr(metrics, name)()
    figure = name.lower()

    def numbers(prediction: str, reference: str) -> Sequence[float]:
        (counts,) = metric._extract_corpus_statistics([prediction], [[reference]])
        return [float(count) for count in counts]

    def figures(sums: Floats) -> Figures:
        return {figure: float(metric._compute_score_from_stats(sums.astype(int).tolist()).score)}

    size = len(numbers("a", "a"))  # the signature wants to know how many references a row has, too
    return RowMetric((figure,), size, numbers, figures, metric.get_signature().format())


METRICS: Mapping[str, Callable[[], RowMetric]] = {
    "exact_match": partial(_means, ("exact_match",), lambda *texts: [is_exact_match(*texts)]),
    "valid_json": partial(_means, ("valid_json",), lambda given, _: [is_valid_json(given)]),
    "bleu": partial(_sacrebleu, "BLEU"),
    "chrf": partial(_sacrebleu, "CHRF"),
    **dict.fromkeys(ROUGE, rouge),
}
"""Each figure by its name, and what gives it.

exact_match and valid_json are the share of answers that equal their reference, white space around both aside, and of
those that are JSON, whole. bleu and chrf, 0 to 100, are those of the corpus as sacrebleu computes them (Post 2018),
whose signature says how: BLEU of Papineni et al. 2002, and chrF2 of Popović 2015.
"""


def is_exact_match(prediction: str, reference: str) -> bool:
    """Whether a prediction equals its reference, white space around both aside."""
    return prediction.strip() == reference.strip()


def is_valid_json(text: str) -> bool:
    """Whether a text is one JSON value by RFC 8259, which has no NaN and no Infinity."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


class LabelTally:
    """The figures of predicted labels: a matrix is held, and no row but with `keep`, for `figures(counts)`."""

    def __init__(self, labels: Sequence[str], *, keep: bool = False) -> None:
        self.labels = tuple(labels)
        self._places = {label: place for place, label in enumerate(self.labels)}
        self._cells = np.zeros(len(self.labels) ** 2, dtype=np.int64)
        self._kept = array("q") if keep else None

    def add(self, prediction: str, reference: str) -> None:
        """Count one more row."""
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

        A correlation where one label stands alone is 0, as in scikit-learn, which is too slow for a thousand draws.

        Source: Matthews' correlation of several labels is Gorodkin's, 2004.
        """
        size = len(self.labels)
        if counts is None:
            matrix = self._cells.reshape(size, -1).astype(np.float64)
            right, given, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
        elif self._kept is None:
            raise ValueError("the rows were not kept")
        else:  # without the matrix: a thousand classes have a million cells in each draw
            of_rows, of_answers = np.divmod(np.frombuffer(self._kept, dtype=np.int64), size)
            weights = (of_rows, counts), (of_answers, counts), (of_rows, counts * (of_rows == of_answers))
            right, given, hits = (
                np.bincount(each, weights=often, minlength=size).astype(np.float64) for each, often in weights
            )
        rows = right.sum()
        spread = (rows**2 - given @ given) * (rows**2 - right @ right)
        mcc = float((hits.sum() * rows - right @ given) / np.sqrt(spread)) if spread > 0 else 0.0
        return {**label_figures(right, given, hits), "mcc": mcc}
