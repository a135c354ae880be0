"""Which key of the config to change next, and why: rules with thresholds, each of what a run's figures show.

The guide `docs/guides/report.md` states the same thresholds. A rule whose figures are not there gives nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from loraft.reporting.model_findings import ModelFindings
from loraft.reporting.run_records import RunRecords

LOGGED = 10
"""So many logged steps there must be before the training loss or the gradient is judged."""
PART = 0.2
"""The beginning and the end of a run are this share of its logged steps."""
DIVERGED = 1.2
"""The training loss of the end, over the lowest of any part as long, from which a run has diverged."""
OVER_FITTED = 1.02
"""The last evaluation loss over the lowest one from which a run has over-fitted, where it rose by LEAST at all."""
EARLY = 0.34
"""A run whose lowest evaluation loss comes in this share of its steps learned too fast, else too long."""
CLIPPED = 0.9
"""The share of logged steps whose gradient was clipped from which that is the rule; while the training loss falls on
it does no harm."""
FALLING = 0.02
"""What the training loss still loses from the part before the last one to the last, as a share of it."""
LEAST = 0.01
"""What a loss must change by at the least: of one that is next to nothing no more is to be had, nor is it lost."""
FELL = 0.05
"""What the training loss must lose from the first part to the last, as a share, for a run to have learned anything."""
FORGOTTEN = 0.1
"""What the loss of the general text rises, in nats a token, from which something was forgotten: e^0.1 = 1.11 times."""


@dataclass(frozen=True)
class Advice:
    """A key to change.

    Attributes:
        rule: The name of the rule that says so.
        change: What to set it to, in words.
        reason: What the run's figures show.
    """

    rule: str
    key: str
    change: str
    reason: str


def advice(records: RunRecords, findings: ModelFindings | None = None) -> list[Advice]:
    """What to change, the most pressing first; nothing where no rule applies."""
    found = [rule(records, findings) for rule in RULES]
    return [each for each in found if each is not None]


def over_fitted_after(records: RunRecords) -> int | None:
    """The step with the lowest evaluation loss, where it rose by over 2 %, and by 0.01, to the last one; else None."""
    lowest = records.lowest
    if lowest is None or records.evaluations[-1].loss <= max(lowest.loss * OVER_FITTED, lowest.loss + LEAST):
        return None
    return lowest.step


def _losses(records: RunRecords, first: float, last: float) -> float:
    """The mean of the logged losses in a part of the run, from one share of it to another."""
    count = len(records.steps)
    return fmean(step.loss for step in records.steps[round(count * first) : round(count * last)])


def _fall(records: RunRecords) -> tuple[float, float] | None:
    """The training loss of the part before the last, and of the last, where that is lower by 2 %, and by 0.01."""
    before, last = _losses(records, 1 - 2 * PART, 1 - PART), _losses(records, 1 - PART, 1)
    return (before, last) if before - last >= max(FALLING * before, LEAST) else None


def _rate(records: RunRecords, factor: float) -> str:
    """The learning rate of the run times a factor, as one writes it."""
    given = records.config.training.learning_rate
    peak = max(step.learning_rate for step in records.steps) if given == "auto" else given
    return f"{peak * factor:.1e}".replace("e-0", "e-")


def _diverged(records: RunRecords, _: ModelFindings | None) -> Advice | None:
    if len(records.steps) < LOGGED:
        return None
    parts = [_losses(records, start / 5, (start + 1) / 5) for start in range(5)]
    if parts[-1] <= DIVERGED * min(parts) or parts[-1] - min(parts) < 0.05:
        return None
    reason = f"the training loss was {min(parts):.3f} at its lowest and is {parts[-1]:.3f} at the end: it diverged"
    return Advice("diverged", "training.learning_rate", f"{_rate(records, 1 / 3)}, a third", reason)


def _over_fitted(records: RunRecords, _: ModelFindings | None) -> Advice | None:
    step, lowest, settings = over_fitted_after(records), records.lowest, records.config.training
    if step is None or lowest is None:
        return None
    last = records.evaluations[-1]
    reason = (
        f"the evaluation loss was lowest at step {step} ({lowest.loss:.3f}) and rose to {last.loss:.3f} by step "
        f"{last.step}: it over-fitted"
    )
    if step <= EARLY * last.step:
        change = f"{_rate(records, 1 / 2)}, half: the best came in the first third of the run"
        return Advice("over_fitted", "training.learning_rate", change, reason)
    if settings.max_steps is not None:
        return Advice("over_fitted", "training.max_steps", f"{step}", reason)
    epochs = max(1, math.ceil(lowest.epoch)) if lowest.epoch >= 1 else round(lowest.epoch, 2)
    change = f"{epochs:g}, or training.early_stopping_patience: 2, which saves the best weights"
    if epochs >= settings.num_train_epochs:
        return Advice("over_fitted", "training.early_stopping_patience", "2, which saves the best weights", reason)
    return Advice("over_fitted", "training.num_train_epochs", change, reason)


def _no_better_than_base(records: RunRecords, findings: ModelFindings | None) -> Advice | None:
    loss = findings.figures.get("loss") if findings is not None else None
    if loss is None or math.isnan(loss.high) or loss.high < 0 or over_fitted_after(records) is not None:
        return None
    reason = (
        f"on the held-out rows the loss is {loss.trained:.3f} and the base's {loss.base:.3f}: the interval of the "
        f"difference, {loss.low:+.3f} to {loss.high:+.3f}, holds 0 or lies above it"
    )
    if len(records.steps) >= LOGGED and _losses(records, 1 - PART, 1) <= (1 - FELL) * _losses(records, 0, PART):
        change = "more rows, or rows that are like those held out: what was learned does not carry over"
        return Advice("no_better_than_base", "data.train", change, reason)
    return Advice("no_better_than_base", "training.learning_rate", f"{_rate(records, 3)}, three times", reason)


def _forgot(records: RunRecords, findings: ModelFindings | None) -> Advice | None:
    text = findings.forgotten if findings is not None else None
    if text is None or text.trained - text.base < FORGOTTEN:
        return None
    reason = (
        f"the loss of the general text rose from {text.base:.3f} to {text.trained:.3f} nats a token: the model "
        "writes other text worse than before"
    )
    return Advice("forgot", "training.learning_rate", f"{_rate(records, 1 / 2)}, half; or fewer epochs", reason)


def _clipped(records: RunRecords, _: ModelFindings | None) -> Advice | None:
    limit = records.config.training.max_grad_norm
    if limit is None or len(records.steps) < LOGGED:
        return None
    over = sum(step.grad_norm > limit for step in records.steps)
    if over < CLIPPED * len(records.steps) or _fall(records):
        return None
    reason = f"the gradient was clipped to {limit:g} at {over:,} of {len(records.steps):,} logged steps"
    change = f"{_rate(records, 1 / 2)}, half; or a higher training.max_grad_norm"
    return Advice("clipped", "training.learning_rate", change, reason)


def _falling(records: RunRecords, _: ModelFindings | None) -> Advice | None:
    """More epochs, where nothing speaks against them: the run ended, and the newest evaluation is its best."""
    lowest, settings = records.lowest, records.config.training
    if len(records.steps) < LOGGED or not records.finished:
        return None
    if lowest is not None and (lowest.step != records.evaluations[-1].step or len(records.evaluations) < 2):
        return None
    if (fall := _fall(records)) is None:
        return None
    held_out = "" if lowest is None else ", and the last evaluation is the best"
    reason = f"the training loss still fell at the end, from {fall[0]:.3f} to {fall[1]:.3f}{held_out}"
    if settings.max_steps is not None:
        return Advice("falling", "training.max_steps", f"{2 * settings.max_steps}, twice as many", reason)
    return Advice("falling", "training.num_train_epochs", f"{2 * settings.num_train_epochs:g}, twice as many", reason)


def _none_held_out(records: RunRecords, _: ModelFindings | None) -> Advice | None:
    if records.config.data.eval is not None:
        return None
    reason = "no rows were held out: nobody can tell learning from learning by heart"
    return Advice("none_held_out", "data.eval", "0.1, a tenth of the rows", reason)


RULES: Sequence[Callable[[RunRecords, ModelFindings | None], Advice | None]] = (
    _diverged, _over_fitted, _no_better_than_base, _forgot, _clipped, _falling, _none_held_out,
)  # fmt: skip
"""The rules, the most pressing first."""
