"""The figures of a base and of what was trained of it, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping

from loraft.evaluation.bootstrap import paired_differences
from loraft.evaluation.metrics import LabelTally, RowTally, losses, pair_figures
from loraft.reporting.model_findings import FigureBeside
from loraft.reporting.model_readings import ModelReadings, ReportRows


def beside(read: ReportRows, base: ModelReadings, trained: ModelReadings) -> Mapping[str, FigureBeside]:
    """The figures of both on the held-out rows, with the paired bootstrap of their difference."""
    labels = read.rows.purpose.labels
    found = _compared(_losses(read, base), _losses(read, trained), len(read.held_out))
    asking = sum(item.question is not None for item in read.held_out)
    if read.rows.purpose.task.compares_answers:
        found |= _compared(_rewards(read, base), _rewards(read, trained), len(read.held_out))
    if labels and asking:
        of_classes = _compared(_classes(read, base), _classes(read, trained), asking)
        found |= {name: of_classes[name] for name in ("accuracy", "macro_f1")}
    return found


def _losses(read: ReportRows, of: ModelReadings) -> RowTally:
    task = read.rows.purpose.task
    tally = RowTally(losses(of_text="perplexity" in task.metrics.always), keep=True)
    for item, score in zip(read.held_out, of.held_out, strict=True):
        tally.add(score.loss, task.weight_of(item.example))
    return tally


def _rewards(read: ReportRows, of: ModelReadings) -> RowTally:
    tally = RowTally(pair_figures(), keep=True)
    for score in of.held_out:
        assert score.rewards is not None, "pairs have rewards"
        tally.add(*score.rewards)
    return tally


def _classes(read: ReportRows, of: ModelReadings) -> LabelTally:
    tally = LabelTally(read.rows.purpose.labels, keep=True)
    for item, score in zip(read.held_out, of.held_out, strict=True):
        if item.question is not None and score.answer is not None:
            tally.add(score.answer.text, item.question.reference)
    return tally


def _compared(base: RowTally | LabelTally, trained: RowTally | LabelTally, rows: int) -> dict[str, FigureBeside]:
    before, after = base.figures(), trained.figures()
    apart = paired_differences(base.figures, trained.figures, rows)
    return {
        name: FigureBeside(before[name], after[name], each.difference, each.low, each.high)
        for name, each in apart.items()
    }
