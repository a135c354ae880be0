"""fit(): the one loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch.nn.utils import clip_grad_norm_

from loraft.dataset.sampler import StepBatches
from loraft.errors import DataError, Interrupted, LoraftError
from loraft.events import Note
from loraft.training.checkpoint import RunState, Trainer, newest_checkpoint, prune, save_checkpoint
from loraft.training.evaluate_run import evaluate_run
from loraft.training.memory import peak_bytes
from loraft.training.non_finite import require_finite
from loraft.training.optimizer import learning_rate, optimizer_state
from loraft.training.run_events import RunStarted, Saved, StepDone, StepLogged
from loraft.training.stop_signals import StopSignals

LOGGED_WITHOUT_GRADIENT = 10
"""So many logged steps in a row with a gradient of zero are told."""
NO_GRADIENT = 5e-5
"""A norm below it is 0.0000 in four decimals."""


def fit(run: Trainer, state: RunState) -> None:
    """Train from `state` to the end, and leave in `state` where it ended.

    Raises:
        NonFiniteError: A loss or a gradient is not finite; the checkpoints before it stand.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the state was saved, unless something else went wrong.
    """
    trained = sum(parameter.numel() for parameter in run.adapted.trainable.values())
    run.observer(
        RunStarted(run.folder.path, state.step, run.steps, run.epochs(run.steps), trained, run.total_parameters)
    )
    with StopSignals() as signals:
        try:
            _train(run, state, signals)
        except Exception as error:
            if signals.received is None or isinstance(error, Interrupted):
                raise
            raise _stopped(run, state, signals.received, meanwhile=error) from error


def _train(run: Trainer, state: RunState, signals: StopSignals) -> None:
    clock = Throughput(state.step)
    if state.owes_evaluation:
        if evaluate_run(run, state, signals):
            _save(run, state)
        _grant_a_stop(run, state, signals)
    while not state.finished:
        run.adapted.model.train()
        before = state.step
        for window in _windows_or_save(run, state):
            _step(run, state, window, clock)
            _after_step(run, state, clock, signals)
            if state.finished:
                break
        if state.step == before:  # it was resumed anyway, and the epoch has fewer rows than were trained on
            _begin_epoch(state)
            state.finished = all_trained(run, state)


def _windows_or_save(run: Trainer, state: RunState) -> Iterator[StepBatches]:
    """`_windows`; what was trained is saved where a stream comes to a row that may not be bad.

    Raises:
        DataError: It did.
    """
    try:
        yield from _windows(run, state)
    except DataError:
        if state.step:
            _save(run, state)
        raise


def _windows(run: Trainer, state: RunState) -> Iterator[StepBatches]:
    """The windows of the state's epoch that are not yet trained on."""
    return run.plan.windows(run.train, state.epoch, state.window, (state.drawn, state.pieces))


def _step(run: Trainer, state: RunState, window: StepBatches, clock: Throughput) -> None:
    """One optimizer step: the gradient of the mean loss over all trained tokens of the window, then the update."""
    began = time.perf_counter()
    rows = window.batches
    batches = [run.task.collate(examples, run.layout).to(run.device) for examples in rows]
    weight = sum(run.loss.weight(batch) for batch in batches)
    loss = 0.0
    for batch, examples in zip(batches, rows, strict=True):
        part = run.loss(batch)
        run.scaler.scale(part / weight).backward()
        loss += require_finite(part.item(), "the loss", state.step + 1, examples, run)
    run.scaler.unscale_(run.optimizer)
    limit = run.settings.max_grad_norm if run.settings.max_grad_norm is not None else math.inf
    norm = clip_grad_norm_(list(run.adapted.trainable.values()), limit).item()
    if not run.scaler.is_enabled():
        require_finite(norm, "the gradient", state.step + 1, [example for part in rows for example in part], run)
    rate = _rate(run, state.step + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    _count(state, run, window, loss, weight, sum(batch.targets for batch in batches))
    clock.add(time.perf_counter() - began, sum(batch.tokens for batch in batches))
    clock.norm, clock.rate, clock.loss = norm, rate, loss / weight


def _count(state: RunState, run: Trainer, window: StepBatches, loss: float, weight: float, targets: int) -> None:
    state.step += 1
    state.window += 1
    state.tokens += targets
    state.logged_loss += loss
    state.logged_weight += weight
    state.drawn, state.pieces = window.place
    if window.ends_epoch:
        _begin_epoch(state)
    for note in window.notes:
        run.observer(Note(note))
    state.finished = all_trained(run, state)


def _begin_epoch(state: RunState) -> None:
    state.epoch, state.window, state.drawn, state.pieces = state.epoch + 1, 0, 0, 0


def all_trained(run: Trainer, state: RunState) -> bool:
    """Whether all steps are taken, or all epochs: a stream may have fewer rows to train on than it has rows."""
    epochs = run.settings.num_train_epochs if run.settings.max_steps is None else math.inf
    return state.step >= run.steps or state.epoch >= epochs


def _after_step(run: Trainer, state: RunState, clock: Throughput, signals: StopSignals) -> None:
    """Tell, log, evaluate and save what is due at this step, in this order; then grant a wish to stop."""
    _tell_step(run, state, clock)
    if state.step % run.settings.logging_steps == 0 or state.finished:
        _log(run, state, clock)
    if run.evaluation and _due(run.eval_every, state):
        state.owes_evaluation = True
        improved = evaluate_run(run, state, signals)
    else:
        improved = False
    asked = run.save_requests.take()
    if _due(run.save_every, state) or improved or asked or signals.received is not None:
        _save(run, state)
    _grant_a_stop(run, state, signals)


def _grant_a_stop(run: Trainer, state: RunState, signals: StopSignals) -> None:
    """End where a signal asked for it, unless nothing is left to do; the state was saved.

    Raises:
        Interrupted: It did.
    """
    if signals.received is not None and (state.owes_evaluation or not state.finished):
        raise _stopped(run, state, signals.received)


def _stopped(run: Trainer, state: RunState, signal_number: int, *, meanwhile: Exception | None = None) -> Interrupted:
    """The end that a signal asked for, with what became of the state."""
    kept = "everything is saved"
    if meanwhile is not None:
        newest, _ = newest_checkpoint(run.folder.checkpoints)
        reason = meanwhile.problems[0].message if isinstance(meanwhile, LoraftError) else str(meanwhile)
        kept = f"{newest.name if newest else 'nothing'} is saved, for meanwhile {reason}"
    return Interrupted(
        f"stopped at step {state.step} of {run.steps}; {kept}",
        signal_number=signal_number,
        remedy=f"go on: `loraft.train(loraft.load_config({str(run.folder.config)!r}), resume=True)`",
    )


def _due(every: int | None, state: RunState) -> bool:
    return state.finished or (state.window == 0 if every is None else state.step % every == 0)


def _tell_step(run: Trainer, state: RunState, clock: Throughput) -> None:
    run.observer(
        StepDone(
            state.step, run.steps, run.epochs(state.step), clock.loss, clock.rate,
            clock.tokens_per_second, peak_bytes(run.device), clock.seconds_left(state.step, run.steps),
        )
    )  # fmt: skip


def _log(run: Trainer, state: RunState, clock: Throughput) -> None:
    state.last_loss = state.logged_loss / state.logged_weight
    state.logged_loss, state.logged_weight = 0.0, 0.0
    event = StepLogged(
        step=state.step,
        steps=run.steps,
        epoch=run.epochs(state.step),
        loss=state.last_loss,
        grad_norm=clock.norm,
        learning_rate=clock.rate,
        tokens=state.tokens,
        tokens_per_second=clock.tokens_per_second,
        peak_bytes=peak_bytes(run.device),
        seconds_left=clock.seconds_left(state.step, run.steps),
    )
    run.folder.append(run.folder.metrics, _record(event, leave_out=("steps", "seconds_left")))
    run.observer(event)
    _look_for_movement(run, state, clock.norm)


def _look_for_movement(run: Trainer, state: RunState, norm: float) -> None:
    """Say once that nothing is being learned, where the gradient has been as good as zero for long."""
    if state.without_gradient == LOGGED_WITHOUT_GRADIENT:
        return
    state.without_gradient = state.without_gradient + 1 if norm < NO_GRADIENT else 0
    if state.without_gradient == LOGGED_WITHOUT_GRADIENT:
        text = (
            f"the gradient norm has been {norm:.4f} for {LOGGED_WITHOUT_GRADIENT} logged steps in a row, up to step "
            f"{state.step}: nothing is being learned; at a loss near 0 the rows are known by heart, else the loss does "
            "not depend on what is trained"
        )
        run.observer(Note(text))


def _save(run: Trainer, state: RunState) -> None:
    run.folder.require()
    remembered: dict[str, Any] = asdict(state) | {
        "files": run.folder.sizes(), "scaler": run.scaler.state_dict(), "optim": run.settings.optim,
    }  # fmt: skip
    place = save_checkpoint(
        run.folder.checkpoints, state.step, run.save_weights, remembered, optimizer_state(run.optimizer)
    )
    rotate_checkpoints(run, state)
    run.observer(Saved(state.step, place))


def rotate_checkpoints(run: Trainer, state: RunState) -> None:
    """Remove the checkpoints that `training.save_total_limit` leaves no room for; the best one stays."""
    keep = run.settings.save_total_limit
    prune(run.folder.checkpoints, step=state.step, keep=keep, best_step=state.best_step)


def _rate(run: Trainer, step: int) -> float:
    schedule = run.settings.lr_scheduler_type
    return learning_rate(step, steps=run.steps, warmup=run.warmup, peak=run.peak_rate, schedule=schedule)


def _record(event: StepLogged, leave_out: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in asdict(event).items() if key not in leave_out}


class Throughput:
    """The rate of this process's steps, evaluations and saving left out, and what the newest step came to.

    Attributes:
        norm: The norm of the newest step's gradient, before it was clipped.
        rate: The newest step's learning rate.
        loss: Its loss, in nats a trained token.
    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._seconds = 0.0
        self._tokens = 0
        self.norm = self.rate = self.loss = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Count a step."""
        self._seconds += seconds
        self._tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        """The rate since this process began."""
        return self._tokens / self._seconds

    def seconds_left(self, step: int, steps: int) -> float:
        """How long the steps after `step` will take, of `steps` in all."""
        return self._seconds / (step - self._first_step) * (steps - step)
