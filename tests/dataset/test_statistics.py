"""Numbers about rows, by hand."""

from __future__ import annotations

import json

from loraft.dataset.statistics import (
    ClassCount,
    DataReport,
    Repetition,
    SourceCounts,
    count_classes,
    findings,
    lengths_of,
    repetitions,
    unknown_tokens,
)
from loraft.tokenization.examples import Example


def test_quantiles_are_lengths_of_real_rows() -> None:
    found = lengths_of([7, 1, 3])
    assert (found.shortest, found.median, found.p90, found.keeps_99_percent, found.longest) == (1, 3, 7, 7, 7)


def test_99_of_100_rows_fit_in_the_length_that_is_said() -> None:
    lengths = list(range(1, 201))
    keeps = lengths_of(lengths).keeps_99_percent
    assert sum(length <= keeps for length in lengths) / len(lengths) >= 0.99
    assert sum(length <= keeps - 2 for length in lengths) / len(lengths) < 0.99


def test_the_report_is_json() -> None:
    counts = SourceCounts("a.jsonl", "text", read=2, kept=2)
    report = DataReport(2, 0, 10, 4, lengths_of([4, 6]), 8, [counts], [{"row": "a.jsonl:1", "text": "⟦x⟧"}])
    shown = json.loads(json.dumps(report.as_dict()))
    assert shown["trained_share"] == 0.4
    assert shown["sources"][0]["kept"] == 2
    assert shown["length"]["longest"] == 6


def example(ids: list[int], where: str) -> Example:
    return Example.of_text(ids, ids, where)


def test_rows_that_are_there_twice_are_named() -> None:
    train = [example([1, 2], "a:1"), example([3], "a:2"), example([1, 2], "a:3"), example([1, 2], "b:1")]
    held = [example([3], "c:1"), example([4], "c:2")]
    repeated, seen = repetitions(train, held)
    assert repeated == [Repetition("a:3", "a:1"), Repetition("b:1", "a:1")]
    assert seen == [Repetition("c:1", "a:2")]


def test_the_same_text_with_another_label_is_another_row() -> None:
    assert repetitions([Example.of_class([1], 0, "a:1"), Example.of_class([1], 1, "a:2")], []) == ([], [])
    assert repetitions([Example.of_text([1, 2], [-100, 2], "a:1"), Example.of_text([1, 2], [1, 2], "a:2")], []) == (
        [],
        [],
    )


def test_classes_are_counted_with_those_that_have_no_row() -> None:
    train = [Example.of_class([1], label, "a:1") for label in (0, 0, 0, 2)]
    assert count_classes(("x", "y", "z"), train, train[:1]) == [
        ClassCount("x", 3, 0.75, 1), ClassCount("y", 0, 0.0, 0), ClassCount("z", 1, 0.25, 0),
    ]  # fmt: skip


def test_unknown_tokens_are_counted_in_targets_too() -> None:
    assert unknown_tokens([Example.of_pair([7, 1], [7, 7], "a:1"), Example.of_text([7, 1], [7, 1], "a:2")], 7) == 4


def test_what_a_person_should_know() -> None:
    counts = SourceCounts("a.jsonl", "text")
    report = DataReport(
        4, 1, 100, 4, lengths_of([4]), 8, [counts], [], classes=[ClassCount("y", 0, 0.0, 0)], unknown_tokens=2,
        repeated=[Repetition("a:3", "a:1")], seen=[Repetition("c:1", "a:2")],
    )  # fmt: skip
    unknown, absent, unmeasured, repeated, seen = findings(report)
    assert unknown.startswith("2.0% of the tokens")
    assert absent == "no training row is of the class y"
    assert unmeasured == "no row to evaluate on is of the class y: its figures will say nothing of it"
    assert repeated == "1 training row repeats an earlier one, the first a:3 (a:1)"
    assert seen.startswith("1 of 1 row to evaluate on stands among the training rows, the first c:1 (a:2)")
    shown = report.as_dict()
    assert "trained_tokens" not in shown
    assert (shown["repeated_rows"], shown["eval_rows_in_train"], shown["unknown_share"]) == (1, 1, 0.02)
    assert "repeated" not in shown
    assert report.as_dict(verbose=True)["in_train_and_eval"] == [{"row": "c:1", "same_as": "a:2"}]
