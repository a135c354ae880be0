"""Numbers about rows, by hand."""

from __future__ import annotations

import json

from loraft.data.statistics import DataReport, SourceCounts, lengths_of


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
