"""The learning rate of a step: a pure function of it, so that a schedule has no state that could be lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from transformers import get_scheduler

from loraft.config.schedules import LINEAR_WARMUP, ScheduleKwargs, ScheduleName
from loraft.config.schema import TrainingSection
from loraft.errors import ConfigError
from loraft.figures import counted

KWARGS = "training.lr_scheduler_kwargs"
LR_END = 1e-7
"""Where transformers' polynomial ends if nothing is said."""


def warmup_steps(setting: float, steps: int) -> int:
    """The steps of warm-up: `setting` itself, or that share of all `steps` (rounded up) where it is below 1."""
    return min(_number_of(setting, steps), steps)


def learning_rate(training: TrainingSection, step: int, steps: int) -> float:
    """The rate of optimizer step `step`, counted from 1 to `steps`, as the resolved section says.

    Of linear, cosine and constant the warm-up rises linearly and never wastes a step on a rate of zero: step s of w
    runs at peak · s / (w + 1). With p = (step - 1 - w) / (steps - w) the rate after it is peak · (1 - p) for linear,
    peak · (1 + cos πp) / 2 for cosine (Loshchilov and Hutter 2017, equation 5), and peak for constant.

    All others are transformers' own, to the number: their warm-up is (s - 1) / w.
    """
    assert training.learning_rate != "auto", "the plan resolves it"
    peak, warmup = training.learning_rate, warmup_steps(training.warmup_steps, steps)
    if training.lr_scheduler_type not in LINEAR_WARMUP:
        kwargs = _kwargs(training, warmup, steps)
        return peak * _of_transformers(training.lr_scheduler_type, peak, warmup, steps, kwargs)(step - 1)
    if step <= warmup:
        return peak * step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, steps - warmup)
    shapes = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return peak * shapes[training.lr_scheduler_type]


def require_schedule(training: TrainingSection, steps: int) -> Iterator[str]:
    """Look at the numbers of a schedule beside the rate and the steps of the resolved run; what there is to tell.

    Raises:
        ConfigError: The rate would not fall.
    """
    assert training.learning_rate != "auto", "the plan resolves it"
    peak, said = training.learning_rate, training.lr_scheduler_kwargs or ScheduleKwargs()
    ends = {"polynomial": LR_END if said.lr_end is None else said.lr_end, "cosine_with_min_lr": said.min_lr or 0.0}
    if (end := ends.get(training.lr_scheduler_type, 0.0)) >= peak:
        message = f"the rate would end at {end:g}, which is not below training.learning_rate {peak:g}"
        raise ConfigError(message, key=KWARGS, remedy="min_lr and lr_end are rates, min_lr_rate is a share of the peak")
    if (warmup := _number_of(training.warmup_steps, steps)) > steps:
        few = f"training.warmup_steps {warmup:,} is more than the {counted(steps, 'step')} of the run"
        yield f"{few}: the rate never comes to its peak"
    left = steps - warmup_steps(training.warmup_steps, steps)
    wanted = _number_of(said.num_decay_steps or 0, steps)
    if wanted > left:
        falling = counted(left, "step")
        yield f"the rate falls in {falling} and not in {wanted:,}: the warm-up leaves no more of {steps:,}"


def _kwargs(training: TrainingSection, warmup: int, steps: int) -> tuple[tuple[str, object], ...]:
    """What is said of the schedule, in transformers' words; the decay has no more steps than the warm-up leaves."""
    said = {name: value for name, value in training.lr_scheduler_kwargs or () if value is not None}
    if "num_decay_steps" in said:
        said["num_decay_steps"] = min(_number_of(said["num_decay_steps"], steps), steps - warmup)
    return tuple(said.items())


def _number_of(setting: float, steps: int) -> int:
    return math.ceil(setting * steps) if setting < 1 else int(setting)


@lru_cache
def _of_transformers(
    name: ScheduleName, peak: float, warmup: int, steps: int, kwargs: tuple[tuple[str, object], ...]
) -> Callable[[int], float]:
    """The factor on the peak after a number of steps, as transformers' schedule of that name has it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_scheduler(name, optimizer, warmup, steps, dict(kwargs))
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
