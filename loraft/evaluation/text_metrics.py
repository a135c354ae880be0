"""Metrics of generated text: what each answer adds, and the figure of many.

BLEU and chrF are sacrebleu's and ROUGE is rouge-score's, each over all rows and not a mean of figures of rows, save
for ROUGE, which is defined as that. Percentages are sacrebleu's habit: BLEU and chrF run from 0 to 100, the rest from
0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loraft.evaluation.accumulators import Figures, RowMetric
from loraft.tasks.task import ROUGE

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


def exact_match() -> RowMetric:
    """The share of answers that equal their reference, white space around both aside."""
    return RowMetric(("exact_match",), 2, lambda given, right: (is_exact_match(given, right), 1), _share("exact_match"))


def valid_json() -> RowMetric:
    """The share of answers that are JSON, whole."""
    return RowMetric(("valid_json",), 2, lambda given, _: (is_valid_json(given), 1), _share("valid_json"))


def bleu() -> RowMetric:
    """Corpus BLEU, 0 to 100.

    Source: Papineni et al. 2002, as sacrebleu computes it (Post 2018): the signature says how.
    """
    from sacrebleu.metrics.bleu import BLEU

    return _sacrebleu("bleu", BLEU(), 10)


def chrf() -> RowMetric:
    """Corpus chrF2, 0 to 100.

    Source: Popović 2015, as sacrebleu computes it: the signature says how.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _sacrebleu("chrf", CHRF(), 18)


def rouge() -> RowMetric:
    """ROUGE-1, ROUGE-2 and ROUGE-L: the mean of the rows' F-measures, 0 to 1.

    Only the letters a to z and digits are read, as the field's implementation has it: in other scripts it says
    nothing.

    Source: Lin 2004, as rouge-score computes it.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(ROUGE, tokenizer=DefaultTokenizer(use_stemmer=False))

    def numbers(prediction: str, reference: str) -> Sequence[float]:
        scores = scorer.score(reference, prediction)
        return [*(scores[name].fmeasure for name in ROUGE), 1]

    def figures(sums: NDArray[np.float64]) -> Figures:
        return {name: float(total / sums[-1]) for name, total in zip(ROUGE, sums, strict=False)}

    signature = f"measure:f1|stemmer:no|script:a-z0-9|version:{version('rouge-score')}"
    return RowMetric(ROUGE, 4, numbers, figures, signature)


METRICS: Mapping[str, Callable[[], RowMetric]] = {
    "exact_match": exact_match,
    "valid_json": valid_json,
    "bleu": bleu,
    "chrf": chrf,
    **dict.fromkeys(ROUGE, rouge),
}
"""Each figure by its name, and what gives it."""


def _share(name: str) -> Callable[[NDArray[np.float64]], Figures]:
    return lambda sums: {name: float(sums[0] / sums[1])}


def _sacrebleu(name: str, metric: Metric, size: int) -> RowMetric:
    """A measure of sacrebleu's, taken apart where its own bootstrap takes it apart: counts of a row, figure of sums."""

    def numbers(prediction: str, reference: str) -> Sequence[float]:
        (counts,) = metric._extract_corpus_statistics([prediction], [[reference]])
        return [float(count) for count in counts]

    def figures(sums: NDArray[np.float64]) -> Figures:
        return {name: float(metric._compute_score_from_stats(sums.astype(int).tolist()).score)}

    numbers("a", "a")  # the signature wants to know how many references a row has
    return RowMetric((name,), size, numbers, figures, metric.get_signature().format())


def is_exact_match(prediction: str, reference: str) -> bool:
    """Whether a prediction equals its reference, white space around both aside."""
    return prediction.strip() == reference.strip()


def is_valid_json(text: str) -> bool:
    """Whether a text is one JSON value by RFC 8259, which has no NaN and no Infinity."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
