"""An evaluation while a run goes on: measured, compared with those before it, told, and whether it ends the run."""

from __future__ import annotations

from dataclasses import asdict

from loraft.events import Note
from loraft.figures import perplexity
from loraft.grammar import counted
from loraft.training.eval_loss import EvalLoss, evaluate_loss
from loraft.training.non_finite import require_finite
from loraft.training.run_events import Evaluated, SampleAnswered
from loraft.training.stop_signals import StopSignals
from loraft.training.trainer_state import RunState, Trainer


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
