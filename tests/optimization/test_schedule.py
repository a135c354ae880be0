"""The learning rate in closed form, and transformers' own schedules step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from loraft.config.schedules import LINEAR_WARMUP, ScheduleName
from loraft.config.schema import TrainingSection
from loraft.errors import ConfigError
from loraft.optimization.schedule import learning_rate, require_schedule, warmup_steps
from loraft.training.loop import fit
from loraft.training.run_events import StepLogged
from tests.training.building import tiny_config, tiny_fit

PEAK = 3e-4
SCHEDULES: list[tuple[ScheduleName, dict[str, Any]]] = [
    ("constant_with_warmup", {}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", {"min_lr": 1e-5, "num_cycles": 1.5}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 6}),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 4, "warmup_type": "1-sqrt", "decay_type": "linear", "min_lr_ratio": 0.2},
    ),
    ("warmup_stable_decay", {"num_decay_steps": 9, "decay_type": "1-sqrt", "warmup_type": "cosine"}),
]


def section(schedule: str, peak: float = 1.0, **values: Any) -> TrainingSection:
    return TrainingSection(learning_rate=peak, lr_scheduler_type=schedule, **values)  # type: ignore[arg-type]


def rates(schedule: str, steps: int = 10, warmup: int = 3) -> list[float]:
    return [learning_rate(section(schedule, warmup_steps=warmup), step, steps) for step in range(1, steps + 1)]


def test_c16_linear_rises_to_the_peak_and_falls_to_one_step_above_zero() -> None:
    assert rates("linear") == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_c16_cosine_and_constant() -> None:
    assert rates("constant") == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert rates("cosine")[3:] == pytest.approx([(1 + math.cos(math.pi * k / 7)) / 2 for k in range(7)])


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    for schedule in LINEAR_WARMUP:
        for warmup in (0, 1, 10):
            assert all(rate > 0 for rate in rates(schedule, 10, warmup))


def test_a_share_of_warmup_is_rounded_up() -> None:
    assert [warmup_steps(0.03, 100), warmup_steps(0.03, 101), warmup_steps(5, 100), warmup_steps(0, 100)] == [
        3,
        4,
        5,
        0,
    ]
    assert warmup_steps(50, 10) == 10


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_c16_steps_are_counted_in_optimizer_steps(tmp_path: Path, accumulation: int) -> None:
    """C16: the rate of step k is the closed form whatever the accumulation."""
    events: list[object] = []
    config = tiny_config(
        tmp_path, training__gradient_accumulation_steps=accumulation, training__per_device_train_batch_size=1,
        training__max_steps=5, training__warmup_steps=2, training__lr_scheduler_type="linear",
    )  # fmt: skip
    fit(*tiny_fit(config, events.append))
    logged = [event.learning_rate for event in events if isinstance(event, StepLogged)]
    assert logged == pytest.approx([0.01 * f for f in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)])


def of_transformers(name: str, kwargs: dict[str, Any], *, warmup: int, steps: int) -> list[float]:
    """The rates that transformers' trainer would take its steps with."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=kwargs)
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


@pytest.mark.parametrize("warmup", [0, 5, 0.11])
@pytest.mark.parametrize(("name", "kwargs"), SCHEDULES)
def test_transformers_schedules_step_by_step(name: ScheduleName, kwargs: dict[str, Any], warmup: float) -> None:
    """The same numbers, a share of warm-up among them: 0.11 of 25 steps are 3."""
    steps = 25
    ours = section(name, PEAK, warmup_steps=warmup, lr_scheduler_kwargs=kwargs or None)
    assert list(require_schedule(ours, steps)) == []
    expected = of_transformers(name, kwargs, warmup=3 if warmup == 0.11 else int(warmup), steps=steps)
    assert [learning_rate(ours, step, steps) for step in range(1, steps + 1)] == expected


@pytest.mark.parametrize("name", sorted(LINEAR_WARMUP))
@pytest.mark.parametrize("warmup", [0, 4])
def test_after_the_warm_up_ours_are_transformers_too(name: str, warmup: int) -> None:
    theirs = of_transformers("constant_with_warmup" if name == "constant" else name, {}, warmup=warmup, steps=20)
    ours = [learning_rate(section(name, PEAK, warmup_steps=warmup), step, 20) for step in range(1, 21)]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-12)


def test_a_share_of_decay_is_a_number_of_steps_rounded_up() -> None:
    share, whole = ({"num_decay_steps": number} for number in (0.3, 8))
    by_share, by_number = (
        section("warmup_stable_decay", lr_scheduler_kwargs=given, warmup_steps=0) for given in (share, whole)
    )
    assert [learning_rate(by_share, s, 25) for s in range(1, 26)] == [
        learning_rate(by_number, s, 25) for s in range(1, 26)
    ]


def test_a_decay_has_no_more_steps_than_the_warm_up_leaves_and_it_is_said() -> None:
    """As of a short trial of a long run: the rate rises, and falls at once."""
    kwargs = {"num_decay_steps": 300, "decay_type": "linear"}
    short = section("warmup_stable_decay", lr_scheduler_kwargs=kwargs, warmup_steps=2)
    assert list(require_schedule(short, 6)) == [
        "the rate falls in 4 steps and not in 300: the warm-up leaves no more of 6"
    ]
    assert [learning_rate(short, s, 6) for s in range(1, 7)] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert [learning_rate(short, s, 2) for s in range(1, 3)] == pytest.approx([0, 0.5])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.1}}, "would end at 0.1"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "would end at 1e-07"),
    ],
)
def test_numbers_that_do_not_go_with_the_run_are_refused(values: dict[str, Any], told: str) -> None:
    training = TrainingSection.model_validate({"learning_rate": 1e-3, "warmup_steps": 2, **values})
    with pytest.raises(ConfigError, match=told) as refused:
        list(require_schedule(training, 25))
    assert refused.value.problems[0].key == "training.lr_scheduler_kwargs"


def test_a_warm_up_that_is_longer_than_the_run_is_told() -> None:
    assert list(require_schedule(section("linear", warmup_steps=9), 6)) == [
        "training.warmup_steps 9 is more than the 6 steps of the run: the rate never comes to its peak"
    ]
    assert list(require_schedule(section("linear", warmup_steps=6), 6)) == []
