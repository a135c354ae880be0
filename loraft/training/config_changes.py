"""What of a config may change while a run goes on, and what a longer run does to its learning rate. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loraft.config.dump import inline
from loraft.config.schema import RunConfig, TrainingSection
from loraft.training.optimizer import learning_rate, warmup_steps

SILENT = "training.output_dir"
"""The folder that is gone on with is the one that was named, however it is written."""
HARMLESS = frozenset(
    {
        "training.save_steps", "training.save_total_limit", "training.logging_steps", "training.report_to",
        "training.project", "training.run_name", "training.sample_prompts", "training.per_device_eval_batch_size",
        "training.gradient_checkpointing", "training.early_stopping_patience", "data.num_proc",
        "generation.max_new_tokens", "generation.temperature",
    }
)  # fmt: skip
"""Keys that change no step of the training."""
LENGTH = frozenset({"training.max_steps", "training.num_train_epochs"})


@dataclass(frozen=True)
class Change:
    """A key of two resolved configs that is not the same in both."""

    key: str
    before: object
    now: object

    def __str__(self) -> str:
        return f"{self.key} was {_written(self.before)} and is {_written(self.now)}"


def changes(before: RunConfig, now: RunConfig) -> list[Change]:
    """What differs between two resolved configs, but for the name of the run's folder."""
    found = _changes(before.model_dump(mode="json"), now.model_dump(mode="json"), "")
    return [change for change in found if change.key != SILENT]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            yield Change(f"{prefix}{key}", old, new)


def is_harmless(change: Change, before: RunConfig, now: RunConfig, *, longer: bool) -> bool:
    """Whether the steps that were taken are those of the changed config too.

    Args:
        change: A key that differs.
        before: The config that the run was begun with.
        now: The config that it is gone on with.
        longer: Whether the run has no fewer steps now.
    """
    if change.key == "training.eval_steps":  # with early stopping it decides where the run ends
        return before.training.early_stopping_patience is None and now.training.early_stopping_patience is None
    return change.key in HARMLESS or (change.key in LENGTH and longer)


def rate_note(training: TrainingSection, *, step: int, before: int, now: int) -> str:
    """What another number of steps does to the learning rate after `step`, in one sentence.

    Args:
        training: The resolved section that the run is gone on with.
        step: The last step that was taken.
        before: All steps, as the run was begun.
        now: All steps, as it is gone on with.
    """
    assert training.learning_rate != "auto", "the plan resolves it"
    peak, schedule = training.learning_rate, training.lr_scheduler_type

    def rate(at: int, steps: int) -> float:
        warmup = warmup_steps(training.warmup_steps, steps)
        return learning_rate(at, steps=steps, warmup=warmup, peak=peak, schedule=schedule)

    begun, taken = rate(min(step + 1, before), before), rate(step + 1, now)
    goes_on = f"the run goes on to step {now} instead of {before}"
    if begun == taken:
        return f"{goes_on}, and the learning rate stays {taken:.3g}"
    old = f"it would have been {begun:.3g}" if step < before else f"it had come to {begun:.3g}"
    return (
        f"{goes_on}: from here on the learning rate is that of a run of {now} steps (lr_scheduler_type {schedule}), "
        f"{taken:.3g} at step {step + 1}, where {old}"
    )


def _written(value: object) -> str:
    """A value of a dumped config as a config says it."""
    return inline(tuple(value) if isinstance(value, list) else value)
