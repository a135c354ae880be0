"""An evaluation while a run goes on: measured, compared with those before it, and whether it ends the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from loraft.events import Note
from loraft.figures import counted, label_figures, perplexity
from loraft.tasks.batch import BatchLayout
from loraft.tasks.loss import TaskLoss
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example
from loraft.training.checkpoint import RunState, Trainer
from loraft.training.non_finite import require_finite
from loraft.training.run_events import Evaluated, SampleAnswered
from loraft.training.stop_signals import StopSignals


def evaluate_run(run: Trainer, state: RunState, signals: StopSignals) -> bool:
    """Read the evaluation rows once and answer the samples; True when the model is better than at any one before.

    When a signal comes in the middle the evaluation stays owed, and is made up for on resuming.
    """
    run.adapted.model.eval()
    found = evaluate_loss(
        run.loss,
        run.task, run.evaluation, run.layout, run.settings.per_device_eval_batch_size, run.device,
        stop=lambda: signals.received is not None,
    )  # fmt: skip
    run.adapted.model.train()
    if found is None:
        return False
    require_finite(found.loss, "the evaluation loss", state.step, found.not_finite, run)
    answers = _answers(run, signals)
    if answers is None:
        return False
    best = _compared(state, found, run.settings.metric_for_best_model)
    event = Evaluated(
        state.step, run.epochs(state.step), found.loss, perplexity(found.loss), found.targets, len(run.evaluation),
        best, found.figures,
    )  # fmt: skip
    of_tokens = {} if found.figures else {"eval_perplexity": event.perplexity}
    figures = {f"eval_{name}": value for name, value in found.figures.items()}
    record = {"step": state.step, "epoch": event.epoch, "eval_loss": found.loss, **of_tokens, **figures}
    run.folder.append(run.folder.metrics, record)
    run.observer(event)
    for prompt, answer in answers:
        sample = SampleAnswered(state.step, prompt, answer)
        run.folder.append(run.folder.samples, asdict(sample))
        run.observer(sample)
    if not state.finished and stops_early(run, state):
        state.finished = True
        run.observer(Note(_why_early(run, state)))
    return best


def stops_early(run: Trainer, state: RunState) -> bool:
    """Whether `training.early_stopping_patience` has run out."""
    patience = run.settings.early_stopping_patience
    return patience is not None and state.worse >= patience


def _why_early(run: Trainer, state: RunState) -> str:
    metric, figures = run.settings.metric_for_best_model, state.best_figures
    best = figures.get(metric, state.best_loss)
    since = "in " + counted(state.worse, "evaluation", "evaluations in a row")
    return (
        f"stopped early at step {state.step} of {run.steps}: the {metric.replace('_', ' ')} of the evaluation rows has "
        f"not become better than {best:.4f} at step {state.best_step} {since} (training.early_stopping_patience)"
    )


def _compared(state: RunState, found: EvalLoss, metric: str) -> bool:
    """Remember an evaluation; whether none before it was better."""
    score = found.figures.get(metric, -found.loss)
    best = state.best_score is None or score > state.best_score
    state.eval_loss, state.eval_figures, state.owes_evaluation = found.loss, dict(found.figures), False
    if best:
        state.best_loss, state.best_figures, state.best_score = found.loss, dict(found.figures), score
        state.best_step, state.worse = state.step, 0
    else:
        state.worse += 1
    return best


def _answers(run: Trainer, signals: StopSignals) -> list[tuple[str, str]] | None:
    """Each sample prompt with the answer of the model as it is now; None when a signal came in the middle."""
    answers: list[tuple[str, str]] = []
    for prompt in run.settings.sample_prompts:
        if signals.received is not None:
            return None
        answers.append((prompt, run.answer(prompt)))
    return answers


NO_FIGURES: Mapping[str, float] = MappingProxyType({})


class EvalLoss(NamedTuple):
    """What was measured.

    Attributes:
        loss: The summed loss over what it is divided by: the trained tokens, or the weights of the rows' classes.
        targets: The number of trained tokens, or of rows.
        figures: `accuracy` and `macro_f1` of a classifier; none of other models.
        not_finite: The first batch of rows whose loss is not finite, where the reading ended; none is the rule.
    """

    loss: float
    targets: int
    figures: Mapping[str, float]
    not_finite: Sequence[Example] = ()


def evaluate_loss(
    loss: TaskLoss,
    task: Task,
    examples: Sequence[Example],
    layout: BatchLayout,
    batch_size: int,
    device: str,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> EvalLoss | None:
    """Read the examples once; the model is used in the mode it is in. None when `stop` asked for the end."""
    total, weight, targets = 0.0, 0.0, 0
    cells: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            if stop():
                return None
            rows = examples[start : start + batch_size]
            batch = task.collate(rows, layout).to(device)
            summed, decisions = loss.with_decisions(batch)
            total += summed.item()
            cells += [] if decisions is None else [decisions.cpu()]
            if not math.isfinite(total):
                return EvalLoss(total, targets, NO_FIGURES, rows)
            weight += loss.weight(batch)
            targets += batch.targets
    return EvalLoss(total / weight, targets, class_figures(*torch.cat(cells, 1)) if cells else NO_FIGURES)


def class_figures(right: Tensor, given: Tensor) -> Mapping[str, float]:
    """`accuracy` and `macro_f1` of rows whose classes are `right` and who were given `given`: `[rows]` each."""
    classes = int(torch.stack([right, given]).max()) + 1
    counted = (torch.bincount(each, minlength=classes).numpy() for each in (right, given, right[right == given]))
    return label_figures(*counted)
