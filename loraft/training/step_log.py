"""What is told of each step, and what of several is a line of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loraft.events import Note
from loraft.io.held_memory import peak_bytes
from loraft.optimization.schedule import learning_rate
from loraft.training.run_events import StepDone, StepLogged

if TYPE_CHECKING:
    from loraft.training.checkpoint import RunState
    from loraft.training.train_step import Throughput, Trainer

LOGGED_WITHOUT_GRADIENT = 10
"""So many logged steps in a row with a gradient of zero are told."""
NO_GRADIENT = 5e-5
"""A norm below it is 0.0000 in four decimals."""


def tell_step(run: Trainer, state: RunState, clock: Throughput) -> None:
    """Tell of the newest step where it was taken, and log where that is due: at the end what was left to be logged."""
    taken = not state.skipped_in_a_row
    if not (taken or (state.finished and state.logged_weight)):
        return
    told = progress(run, state, clock)
    if taken:
        run.observer(StepDone(loss=clock.loss, router_aux_loss=clock.router_aux_loss, **told))
    if state.step % run.settings.logging_steps == 0 or state.finished:
        log_steps(run, state, told)


def progress(run: Trainer, state: RunState, clock: Throughput) -> dict[str, Any]:
    """Where a run stands, as its events tell it."""
    step, steps = state.step, run.plan.steps
    rate = learning_rate(run.settings, step - state.skipped_in_a_row, steps)
    # A run that is gone on with may have nothing left but steps that are left out.
    speed = clock.tokens / clock.seconds if clock.tokens else 0.0
    return {
        "step": step, "steps": steps, "epoch": run.epochs(step), "learning_rate": rate,
        "tokens_per_second": speed, "peak_bytes": peak_bytes(run.plan.placement.device),
        "seconds_left": clock.seconds / max(1, step - clock.first_step) * (steps - step),
    }  # fmt: skip


def log_steps(run: Trainer, state: RunState, told: Mapping[str, Any]) -> None:
    """Log the mean loss of the steps since the last line of metrics, with a run's `progress`."""
    state.last_loss = state.logged_loss / state.logged_weight
    of_routers = state.logged_router_loss / state.logged_weight if run.router_aux_loss_coef else None
    state.logged_loss, state.logged_weight, state.logged_router_loss = 0.0, 0.0, 0.0
    event = StepLogged(
        loss=state.last_loss, grad_norm=state.grad_norm, tokens=state.tokens, router_aux_loss=of_routers, **told
    )
    record = asdict(event)
    del record["steps"], record["seconds_left"]
    run.folder.append(run.folder.metrics, {key: value for key, value in record.items() if value is not None})
    run.observer(event)
    _look_for_movement(run, state)


def _look_for_movement(run: Trainer, state: RunState) -> None:
    """Say once that nothing is being learned, where the gradient has been as good as zero for long."""
    if state.without_gradient == LOGGED_WITHOUT_GRADIENT:
        return
    state.without_gradient = state.without_gradient + 1 if state.grad_norm < NO_GRADIENT else 0
    if state.without_gradient == LOGGED_WITHOUT_GRADIENT:
        text = (
            f"the gradient norm has been {state.grad_norm:.4f} for {LOGGED_WITHOUT_GRADIENT} logged steps in a row, up "
            f"to step {state.step}: nothing is being learned; at a loss near 0 the rows are known by heart, else the "
            "loss does not depend on what is trained"
        )
        run.observer(Note(text))
