"""fit(): the one loop.

Signals are wishes that it grants at its next step: SIGINT, SIGTERM and SIGHUP to stop, SIGUSR1 to save.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from loraft.dataset.prepared_steps import PreparedStep, PreparedSteps
from loraft.distributed.ranks import Wishes
from loraft.distributed.roll_call import is_lost_contact
from loraft.errors import DataError, Interrupted, LoraftError, NonFiniteError
from loraft.events import Note, tell
from loraft.figures import counted, perplexity
from loraft.io.signals import signals_to
from loraft.kernels.transfer import has_own_memory
from loraft.training.checkpoint import RunState, newest_checkpoint
from loraft.training.out_of_memory import memory_explained
from loraft.training.run_events import Evaluated, RunStarted, SampleAnswered, Saved, StepSkipped
from loraft.training.save_run import save
from loraft.training.step_log import log_steps, progress, tell_step
from loraft.training.train_step import EvalLoss, Throughput, Trainer, evaluate_loss, take_step

SKIPPED_IN_A_ROW = 5
"""`training.on_nonfinite: skip` ends the run at so many steps in a row that are not finite, or at all that it has."""


@contextmanager
def noted_signals(*numbers: signal.Signals, once: bool = False) -> Iterator[list[int]]:
    """Those of these signals that came while this is entered; `once` lets a second one end the process at once."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        if once:
            for each in numbers:
                signal.signal(each, signal.SIG_DFL)

    with signals_to(note, *numbers):
        yield came


def fit(run: Trainer, state: RunState) -> None:
    """Train from `state` to the end, and leave in `state` where it ended.

    Raises:
        NonFiniteError: A loss or a gradient is not finite; the checkpoints before it stand.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the state was saved, unless something else went wrong.
    """
    trained = sum(parameter.numel() for parameter in run.adapted.trainable.values())
    steps, total = run.plan.steps, run.plan.shape.parameters_in_training
    run.observer(RunStarted(run.folder.path, state.step, steps, run.epochs(steps), trained, total))
    # A SIGHUP that is ignored, as nohup has it, stays ignored.
    hangs_up = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    with noted_signals(signal.SIGINT, signal.SIGTERM, *hangs_up, once=True) as stops:
        try:
            _train(run, state, Wishes(run.ranks, stops, run.save_requests))
        except Exception as error:
            if not stops or isinstance(error, Interrupted) or is_lost_contact(error):
                raise
            raise _stopped(run, state, stops[0], meanwhile=error) from error


@contextmanager
def told_if_stopped(run: Trainer, state: RunState) -> Iterator[None]:
    """Where a signal ends what is done once all steps are taken, tell how to go on: their checkpoint has everything.

    Raises:
        Interrupted: A signal came.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise _stopped(run, state, Interrupted.by(stop).signal_number) from stop


def _train(run: Trainer, state: RunState, wishes: Wishes) -> None:
    clock = Throughput(state.step)
    if state.owes_evaluation:
        _evaluate(run, state, wishes, clock)
        if not state.owes_evaluation:  # the checkpoint of this step still says so
            _save(run, state, wishes)
        _grant_a_stop(run, state, wishes.share())
    while not state.finished:
        run.adapted.model.train()
        before = state.step
        steps = _steps_left(run, state)
        for prepared in _or_save(run, state, steps, wishes):
            _step(run, state, prepared, clock, steps)
            _after_step(run, state, clock, wishes)
            if state.finished:
                break
        if state.step == before:  # it was resumed anyway, and the epoch has fewer rows than were trained on
            state.begin_epoch()
            state.finished = all_trained(run, state)


def _steps_left(run: Trainer, state: RunState) -> PreparedSteps:
    """The steps of the epoch that are left."""
    place = (state.drawn, state.pieces)
    windows = run.plan.batches.windows(run.plan.data.train, state.epoch, state.window, place)
    return PreparedSteps(run.ranks.drawn_together(windows), lay=run.prepare, alone=run.ranks.world == 1)


def _or_save(run: Trainer, state: RunState, steps: PreparedSteps, wishes: Wishes) -> Iterator[PreparedStep]:
    """The steps; what was trained is saved before a stream's bad row is refused."""
    try:
        yield from steps
    except DataError:
        if state.step:
            _save(run, state, wishes)
        raise


def _step(run: Trainer, state: RunState, prepared: PreparedStep, clock: Throughput, steps: PreparedSteps) -> None:
    """Take a step, and count it; a device that computes by itself leaves time to make the next one ready."""
    window = prepared.window
    ahead = {"meanwhile": steps.make_ready} if has_own_memory(run.plan.placement.device) else {}
    try:
        loss = take_step(run, state.step + 1, prepared, clock, **ahead)
    except NonFiniteError as error:
        _leave_out(run, state, error)
    else:
        state.skipped_in_a_row = 0
        state.tokens += prepared.targets
        state.logged_loss += loss
        state.logged_weight += prepared.weight
        state.grad_norm = clock.norm
        state.logged_router_loss += prepared.weight * (clock.router_aux_loss or 0.0)
    state.step += 1
    state.window += 1
    state.drawn, state.pieces = window.place
    if window.ends_epoch:
        state.begin_epoch()
    tell(run.observer, *window.notes)
    state.finished = all_trained(run, state)


def _leave_out(run: Trainer, state: RunState, error: NonFiniteError) -> None:
    """Go on without the update of a step that is not finite where that is asked for, and tell of it.

    All ranks meet the same error, and so decide alike. Where a weight is not finite, no later step can be.

    Raises:
        NonFiniteError: It is not asked for, a weight is not finite, or it is one too many in a row.
    """
    if run.settings.on_nonfinite == "stop" or run.ranks.greatest(run.damaged is not None)[0]:
        raise error
    state.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row == min(SKIPPED_IN_A_ROW, run.plan.steps):
        first = error.problems[0]
        message = f"{first.message}; it is step {state.skipped_in_a_row} in a row that is not finite"
        last = NonFiniteError(message, where=first.where, key="training.on_nonfinite", remedy=first.remedy)
        last.told_by_main = error.told_by_main
        raise last from error
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    step = state.step + 1
    skipped = StepSkipped(step, run.epochs(step), state.skipped, error.problems[0].message)
    run.folder.append(run.folder.metrics, asdict(skipped))
    run.observer(skipped)


def all_trained(run: Trainer, state: RunState) -> bool:
    """Whether all steps are taken, or all epochs: a stream may have fewer rows to train on than it has rows."""
    epochs = run.settings.num_train_epochs if run.settings.max_steps is None else math.inf
    return state.step >= run.plan.steps or state.epoch >= epochs


def _after_step(run: Trainer, state: RunState, clock: Throughput, wishes: Wishes) -> None:
    """Tell, log, evaluate and save what is due at this step, in this order; then grant a wish to stop."""
    tell_step(run, state, clock)
    improved = False
    if run.plan.data.eval and _due(run.plan.eval_every, state):
        state.owes_evaluation = True
        improved = _evaluate(run, state, wishes, clock)
    wishes.share()
    if _due(run.plan.save_every, state) or improved or wishes.save or wishes.stop:
        _save(run, state, wishes)
    _grant_a_stop(run, state, wishes)


def _grant_a_stop(run: Trainer, state: RunState, wishes: Wishes) -> None:
    """End where a signal asked for it, unless nothing is left to do; the state was saved."""
    if wishes.stop and (state.owes_evaluation or not state.finished):
        raise _stopped(run, state, wishes.stop)


def _stopped(run: Trainer, state: RunState, signal_number: int, *, meanwhile: Exception | None = None) -> Interrupted:
    """The end that a signal asked for, with what became of the state."""
    kept = "everything is saved"
    if meanwhile is not None:
        newest, _ = newest_checkpoint(run.folder.checkpoints)
        reason = meanwhile.problems[0].message if isinstance(meanwhile, LoraftError) else str(meanwhile)
        kept = f"{newest.name if newest else 'nothing'} is saved, for meanwhile {reason}"
    message = f"stopped at step {state.step} of {run.plan.steps}; {kept}"
    remedy = f"go on: `loraft.train(loraft.load_config({str(run.folder.config)!r}), resume=True)`"
    return Interrupted(message, signal_number=signal_number, remedy=remedy)


def _due(every: int | None, state: RunState) -> bool:
    return state.finished or (state.window == 0 if every is None else state.step % every == 0)


def _evaluate(run: Trainer, state: RunState, wishes: Wishes, clock: Throughput) -> bool:
    """Read the evaluation rows once and answer the samples; True when the model is better than at any one before.

    When a signal comes in the middle the evaluation stays owed, and is made up for on resuming.
    """
    plan, settings = run.plan, run.settings
    size, rows = settings.per_device_eval_batch_size, plan.data.eval
    run.adapted.model.eval()
    with memory_explained(plan, run.ranks, f" in the evaluation at step {state.step}", evaluates=True):
        found = evaluate_loss(run, rows, size, state.step, stop=lambda: bool(wishes.share().stop))
    run.adapted.model.train()
    if found is None:
        return False
    answers: list[SampleAnswered] = []
    for prompt in settings.sample_prompts if plan.task.generates else ():
        if wishes.share().stop:
            return False
        with run.gathered():
            answers.append(SampleAnswered(state.step, prompt, run.answer(prompt)))
    best = _compared(state, found, settings.metric_for_best_model)
    epoch, likelihood = run.epochs(state.step), perplexity(found.loss)
    event = Evaluated(state.step, epoch, found.loss, likelihood, found.targets, len(rows), best, found.figures)
    measured = found.figures or {"perplexity": likelihood}
    figures = {f"eval_{name}": value for name, value in measured.items()}
    run.folder.append(run.folder.metrics, {"step": state.step, "epoch": epoch, "eval_loss": found.loss, **figures})
    run.observer(event)
    for sample in answers:
        run.folder.append(run.folder.samples, asdict(sample))
        run.observer(sample)
    if not state.finished and stops_early(run, state):
        state.finished = True
        run.observer(Note(_why_early(run, state)))
        if state.logged_weight:
            log_steps(run, state, progress(run, state, clock))
    return best


def stops_early(run: Trainer, state: RunState) -> bool:
    """Whether `training.early_stopping_patience` has run out."""
    patience = run.settings.early_stopping_patience
    return patience is not None and state.worse >= patience


def _why_early(run: Trainer, state: RunState) -> str:
    metric, since = run.settings.metric_for_best_model, counted(state.worse, "evaluation", "evaluations in a row")
    best = state.best_figures.get(metric, state.best_loss)
    return (
        f"stopped early at step {state.step} of {run.plan.steps}: the {metric.replace('_', ' ')} of the evaluation "
        f"rows has not become better than {best:.4f} at step {state.best_step} in {since} "
        "(training.early_stopping_patience)"
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


def _save(run: Trainer, state: RunState, wishes: Wishes) -> None:
    wishes.granted()
    place = save(run, state)
    run.observer(Saved(state.step, place))
