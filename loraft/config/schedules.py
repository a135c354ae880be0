"""The learning-rate schedules, by the names that transformers gives them, and the numbers that each takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from loraft.config.sections import Allowed, NonNegativeFloat, PositiveFloat, PositiveInt, Section

ScheduleName = Literal[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
LINEAR_WARMUP: frozenset[ScheduleName] = frozenset({"linear", "cosine", "constant"})
"""Those whose warm-up never wastes a step on a rate of zero; the others are transformers' own."""
Rise = Literal["linear", "cosine", "1-sqrt"]


def _share_or_whole(value: float | None) -> float | None:
    if value is not None and value >= 1 and value != int(value):
        raise ValueError("must be a whole number of steps, or a share of all steps below 1")
    return value


StepsOrShare = Annotated[
    NonNegativeFloat,
    Allowed("a whole number of steps, or a share of all steps below 1"),
    AfterValidator(_share_or_whole),
]
StepsOrShareOrNull = Annotated[
    PositiveFloat | None,
    Allowed("a whole number of steps, a share of all steps above 0 and below 1, or null"),
    AfterValidator(_share_or_whole),
]
UpToOne = Annotated[float, Field(ge=0, le=1)]


class ScheduleKwargs(Section):
    """The numbers of a schedule, by transformers' names; each schedule takes those that say so."""

    min_lr: NonNegativeFloat | None = None
    """The rate at the end of cosine_with_min_lr."""
    min_lr_rate: UpToOne | None = None
    """The same as a share of learning_rate, in place of min_lr."""
    num_cycles: PositiveFloat | None = None
    """How many waves cosine_with_min_lr, or the decay of warmup_stable_decay, goes through; null is 0.5, one fall."""
    lr_end: NonNegativeFloat | None = None
    """The rate at the end of polynomial; null is 1e-7."""
    power: PositiveFloat | None = None
    """The power of polynomial; null is 1, a line."""
    timescale: PositiveInt | None = None
    """After how many steps inverse_sqrt counts; null is the steps of warm-up, or 10,000 without one."""
    num_decay_steps: StepsOrShareOrNull = None
    """The last steps of warmup_stable_decay, in which the rate falls; below 1 a share of all steps, rounded up."""
    warmup_type: Rise | None = None
    """How warmup_stable_decay rises; null is linear."""
    decay_type: Rise | None = None
    """How warmup_stable_decay falls; null is cosine."""
    min_lr_ratio: UpToOne | None = None
    """Where warmup_stable_decay begins and ends, as a share of learning_rate; null is 0."""


TAKEN: Mapping[ScheduleName, tuple[str, ...]] = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
}
"""The numbers that a schedule takes, where it takes any; first those of which it needs one."""
NEEDED: Mapping[ScheduleName, tuple[str, ...]] = {
    "cosine_with_min_lr": ("min_lr_rate: 0.1", "min_lr: 1e-5"),
    "warmup_stable_decay": ("num_decay_steps: 0.2",),
}
"""What one of has to be said, with an example."""


def misfits(name: ScheduleName, kwargs: ScheduleKwargs | None) -> Iterator[str]:
    """Why these numbers are not those of the schedule, a clause each."""
    said = [key for key, value in kwargs or () if value is not None]
    taken = TAKEN.get(name, ())
    if strange := [key for key in said if key not in taken]:
        yield f"{name} takes {', '.join(taken) or 'no numbers of its own'}, and not {', '.join(strange)}"
    needed = NEEDED.get(name, ())
    given = [example for example in needed if example.partition(":")[0] in said]
    if needed and not given:
        yield f"{name} needs a number of its own: write {' or '.join(f'{{{example}}}' for example in needed)}"
    if len(given) > 1:
        yield f"{' and '.join(example.partition(':')[0] for example in given)} say the same: write one"
