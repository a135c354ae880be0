"""Measures of generated text: values worked out by hand, and parity with what the libraries give for whole corpora."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from loraft.evaluation.metrics import METRICS, RowMetric, RowTally
from loraft.tasks.task import ROUGE

PREDICTIONS = ["the cat sat on the mat", "", "Ein Hund , zwei Katzen .", "a b\nc d", "日本語 の文", "yes"]
REFERENCES = ["the cat sat on a mat", "there is nothing", "Ein Hund, zwei Katzen.", "a b c d e", "日本語の文", "no"]


def tallied(metric: RowMetric, predictions: list[str], references: list[str], *, keep: bool = False) -> RowTally:
    tally = RowTally(metric, keep=keep)
    for prediction, reference in zip(predictions, references, strict=True):
        tally.add(prediction, reference)
    return tally


def test_bleu_of_a_sentence() -> None:
    """4/5 of the words, 3/4 of the pairs, 2/3 of the triples and 1/2 of the fours; no brevity penalty."""
    figures = tallied(METRICS["bleu"](), ["a b c d e"], ["a b c d f"]).figures()
    assert figures["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_bleu_of_a_corpus_is_no_mean_of_sentences() -> None:
    """Summed: 9/10, 7/8, 5/6 and 3/4."""
    figures = tallied(METRICS["bleu"](), ["a b c d e"] * 2, ["a b c d f", "a b c d e"]).figures()
    assert figures["bleu"] == pytest.approx(100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25)


def test_chrf_of_a_word() -> None:
    """One of two characters and none of one pair: precision and recall are (1/2 + 0) / 2."""
    assert tallied(METRICS["chrf"](), ["ab"], ["ac"]).figures()["chrf"] == pytest.approx(25)


def test_rouge_of_a_sentence() -> None:
    """Of `the cat sat` two words of four are right, and two of three are found; pairs: one of three, one of two."""
    figures = tallied(METRICS["rouge1"](), ["a cat sat on"], ["The cat sat."]).figures()
    assert figures["rouge1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert figures["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert figures["rougeL"] == pytest.approx(figures["rouge1"])


def test_corpora_are_as_the_libraries_have_them() -> None:
    assert tallied(METRICS["bleu"](), PREDICTIONS, REFERENCES).figures()["bleu"] == pytest.approx(
        corpus_bleu(PREDICTIONS, [REFERENCES]).score, abs=1e-9
    )
    assert tallied(METRICS["chrf"](), PREDICTIONS, REFERENCES).figures()["chrf"] == pytest.approx(
        corpus_chrf(PREDICTIONS, [REFERENCES]).score, abs=1e-9
    )
    scorer = RougeScorer(ROUGE)
    scores = [scorer.score(right, given) for given, right in zip(PREDICTIONS, REFERENCES, strict=True)]
    figures = tallied(METRICS["rouge1"](), PREDICTIONS, REFERENCES).figures()
    for name in ROUGE:
        assert figures[name] == pytest.approx(np.mean([score[name].fmeasure for score in scores]))


@pytest.mark.parametrize("name", METRICS)
def test_rows_drawn_anew_are_rows_measured_anew(name: str) -> None:
    metric = METRICS[name]()
    kept = tallied(metric, PREDICTIONS, REFERENCES, keep=True)
    drawn = [0, 0, 2, 3, 5, 5]
    anew = tallied(metric, [PREDICTIONS[i] for i in drawn], [REFERENCES[i] for i in drawn])
    counts = np.bincount(drawn, minlength=len(PREDICTIONS))
    assert kept.figures(counts) == pytest.approx(anew.figures())


def test_the_signatures_say_how() -> None:
    assert METRICS["bleu"]().signature is not None
    assert METRICS["bleu"]().signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")  # type: ignore[union-attr]
    assert METRICS["chrf"]().signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")  # type: ignore[union-attr]
    assert METRICS["rouge1"]().signature.startswith("measure:f1|stemmer:no|")  # type: ignore[union-attr]
    assert METRICS["exact_match"]().signature is None


def test_shares() -> None:
    assert tallied(METRICS["exact_match"](), [" a\n", "b"], ["a", "c"]).figures() == {"exact_match": 0.5}
    assert tallied(METRICS["valid_json"](), ["{}", "{", "3"], ["{}"] * 3).figures() == {
        "valid_json": pytest.approx(2 / 3)
    }
