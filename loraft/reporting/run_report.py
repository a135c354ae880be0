"""The report of a run: its curves, its figures and what to change next, as one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from loraft.figures import counted
from loraft.reporting.advice import Advice, advice, over_fitted_after
from loraft.reporting.model_findings import ModelFindings
from loraft.reporting.run_records import LeftOutStep, LoggedEvaluation, LoggedStep, RunRecords

NOTHING_SAVED = "the run has saved nothing yet that could be asked: what needs the model is left out"


@dataclass(frozen=True)
class RunReport:
    """A run, reported.

    Attributes:
        state: `finished`, or `unfinished` where it was interrupted or still goes on.
        planned_steps: None where the run does not say.
        left_out: The steps that changed nothing, since they were not finite.
        best_step: The step of the best evaluation; None where there is none.
        over_fitted_after: The step from which on the evaluation loss rose; None where it did not.
        tokens_per_second: The newest one that was logged.
        predicted_bytes: The memory that was predicted; None where the run does not say.
        clipped_share: The share of logged steps whose gradient was clipped; None where none is clipped.
        findings: What the model tells; None where it was not asked.
        notes: What a person should know, a sentence each.
    """

    run: str
    task: str
    method: str
    base: str
    device: str
    ranks: int
    state: str
    planned_steps: int | None
    steps: Sequence[LoggedStep]
    evaluations: Sequence[LoggedEvaluation]
    left_out: Sequence[LeftOutStep]
    best_metric: str
    best_step: int | None
    over_fitted_after: int | None
    tokens_per_second: float
    peak_bytes: int
    predicted_bytes: int | None
    median_grad_norm: float
    max_grad_norm: float | None
    clipped_share: float | None
    advice: Sequence[Advice]
    findings: ModelFindings | None
    notes: tuple[str, ...]

    def as_dict(self) -> Mapping[str, Any]:
        """The report as JSON shows it."""
        return asdict(self)


def report_of(records: RunRecords, findings: ModelFindings | None = None, *, notes: Sequence[str] = ()) -> RunReport:
    """The report of what a run wrote down and of what its model tells, where that was asked for; `notes` come last."""
    settings, best = records.config.training, records.best
    norms, limit = [step.grad_norm for step in records.steps], settings.max_grad_norm
    told = [*records.notes, *_about(records), *(findings.notes if findings is not None else ()), *notes]
    return RunReport(
        run=records.folder.as_posix(),
        task=records.config.task,
        method=records.config.method,
        base=records.base,
        device=records.device,
        ranks=records.ranks,
        state="finished" if records.finished else "unfinished",
        planned_steps=records.planned_steps,
        steps=records.steps,
        evaluations=records.evaluations,
        left_out=records.left_out,
        best_metric=settings.metric_for_best_model,
        best_step=best.step if best is not None else None,
        over_fitted_after=over_fitted_after(records),
        tokens_per_second=records.steps[-1].tokens_per_second,
        peak_bytes=max(step.peak_bytes for step in records.steps),
        predicted_bytes=records.predicted_bytes,
        median_grad_norm=median(norms),
        max_grad_norm=limit,
        clipped_share=None if limit is None else sum(norm > limit for norm in norms) / len(norms),
        advice=advice(records, findings),
        findings=findings,
        notes=tuple(dict.fromkeys(told)),
    )


def _about(records: RunRecords) -> list[str]:
    notes = []
    if not records.finished:
        of = f" of {records.planned_steps}" if records.planned_steps is not None else ""
        notes.append(f"the run has not ended: it was last logged at step {records.steps[-1].step}{of}")
    if records.left_out:
        steps, first = counted(len(records.left_out), "step"), records.left_out[0]
        notes.append(f"{steps} changed nothing (training.on_nonfinite: skip); the first: {first.reason}")
    if records.config.data.eval is None:
        notes.append("the run held no rows out (data.eval is null): where it over-fitted cannot be told")
    elif not records.evaluations:
        notes.append("the run has not evaluated yet: where it over-fitted cannot be told")
    return notes
