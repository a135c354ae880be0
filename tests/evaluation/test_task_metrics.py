"""Which figures are computed, and what is refused."""

from __future__ import annotations

import pytest

from loraft.errors import DataError
from loraft.evaluation.metrics import METRICS, beyond_rouge
from loraft.evaluation.open_model import chosen_metrics, known_metrics
from loraft.tasks import TASKS


def test_names_are_taken_once_in_any_spelling_and_groups_apart() -> None:
    assert known_metrics(["BLEU", " chrF ", "rouge", "rougeL", "exact-match"]) == (
        "bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match",
    )  # fmt: skip


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(DataError, match=r"no metric 'blue'\n  Did you mean bleu\? The metrics are loss, perplexity,"):
        known_metrics(["loss", "blue"])
    with pytest.raises(DataError, match=r"no metric 'zzzz'\n  The metrics are"):
        known_metrics(["zzzz"])


@pytest.mark.parametrize(
    ("references", "names"),
    [
        (["yes"], ("exact_match",)),
        (['{"a": 1}', "[]"], ("exact_match", "valid_json")),
        (['{"a": 1}', "{"], ("exact_match",)),
        (["3", "4"], ("exact_match",)),
        ([], ()),
    ],
)
def test_without_a_wish_the_references_decide(references: list[str], names: tuple[str, ...]) -> None:
    assert chosen_metrics(None, TASKS["causal_lm"], references) == names


def test_what_was_asked_for_and_nothing_else() -> None:
    assert chosen_metrics(("loss", "bleu"), TASKS["causal_lm"], ["{}"]) == ("bleu",)
    assert chosen_metrics(("loss",), TASKS["causal_lm"], []) == ()


def test_a_metric_of_another_task() -> None:
    with pytest.raises(DataError, match="mcc measures seq_cls, and this is causal_lm"):
        chosen_metrics(("mcc",), TASKS["causal_lm"], ["a"])


def test_a_metric_with_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="bleu compares answers with references, and no row has one"):
        chosen_metrics(("bleu",), TASKS["causal_lm"], [])


def test_right_answers_that_rouge_does_not_read_are_told() -> None:
    """It gives a right answer in Chinese 0, as the package does."""
    (told,) = beyond_rouge(("bleu", "rougeL"), ["日本語", "Yes", "42", "…"])
    assert "2 of 4 right answers" in told
    assert METRICS["rougeL"]().numbers("日本語", "日本語")[2] == 0
    assert not list(beyond_rouge(("bleu", "chrf"), ["日本語"]))
    assert not list(beyond_rouge(("rouge1",), ["日本 2", "É a"]))


def test_what_is_proposed_belongs_to_the_task() -> None:
    with pytest.raises(DataError, match=r"Did you mean accuracy\? The metrics are loss, accuracy"):
        known_metrics(["loss", "acc"], TASKS["seq_cls"])
    with pytest.raises(DataError, match="there is no metric 'acc'") as caught:
        known_metrics(["acc"], TASKS["causal_lm"])
    assert "accuracy" not in str(caught.value)
    assert "mcc" not in str(caught.value)
