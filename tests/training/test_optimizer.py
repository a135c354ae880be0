"""The learning rate in closed form, and an optimizer's state that survives bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from loraft.config.schema import TrainingSection
from loraft.training.optimizer import (
    build_optimizer,
    learning_rate,
    optimizer_state,
    resolve_optim,
    restore_optimizer,
    warmup_steps,
)
from tests.training.building import tiny_config, tiny_fit


def rates(schedule: str, steps: int = 10, warmup: int = 3) -> list[float]:
    section = TrainingSection(learning_rate=1.0, lr_scheduler_type=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    return [learning_rate(section, step, steps) for step in range(1, steps + 1)]


def test_c16_linear_rises_to_the_peak_and_falls_to_one_step_above_zero() -> None:
    assert rates("linear") == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_c16_cosine_and_constant() -> None:
    assert rates("constant") == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert rates("cosine")[3:] == pytest.approx([(1 + math.cos(math.pi * k / 7)) / 2 for k in range(7)])


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    for schedule in ("linear", "cosine", "constant"):
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


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_c16_steps_are_counted_in_optimizer_steps(tmp_path, accumulation: int) -> None:  # type: ignore[no-untyped-def]
    """C16: the rate of step k is the closed form whatever the accumulation."""
    from loraft.training.loop import fit
    from loraft.training.run_events import StepLogged

    events: list[object] = []
    config = tiny_config(
        tmp_path, training__gradient_accumulation_steps=accumulation, training__per_device_train_batch_size=1,
        training__max_steps=5, training__warmup_steps=2, training__lr_scheduler_type="linear",
    )  # fmt: skip
    fit(*tiny_fit(config, events.append))
    logged = [event.learning_rate for event in events if isinstance(event, StepLogged)]
    assert logged == pytest.approx([0.01 * f for f in (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)])


def test_paged_optimizers_on_a_cpu_are_the_unpaged_ones_and_it_is_said() -> None:
    name, note = resolve_optim(TrainingSection(optim="paged_adamw_8bit"), method="qlora", device="cpu")
    assert name == "adamw_8bit"
    assert note is not None
    assert "paging" in note
    assert resolve_optim(TrainingSection(), method="qlora", device="cuda")[0] == "paged_adamw_32bit"
    assert resolve_optim(TrainingSection(), method="lora", device="cuda")[0] == "adamw"


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
def test_state_is_restored_bit_for_bit(optim: str) -> None:
    """C30's other half: what was saved is what is there, and the next step gives the same bytes."""
    section = TrainingSection(optim=optim, learning_rate=0.1, weight_decay=0.1)  # type: ignore[arg-type]

    def begin() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(0)
        # 8192 numbers, since bitsandbytes keeps smaller tensors in 32 bits; and a vector, which does not decay.
        weights = {
            "matrix": torch.nn.Parameter(torch.randn(64, 128, generator=generator)),
            "vector": torch.nn.Parameter(torch.randn(7, generator=generator)),
        }
        optimizer = build_optimizer(weights, section)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        return weights, optimizer

    def step(weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()

    weights, optimizer = begin()
    for seed in (1, 2):
        step(weights, optimizer, seed)
    saved = optimizer_state(optimizer)
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    step(weights, optimizer, 3)
    others, another = begin()
    for name, weight in others.items():
        weight.data.copy_(values[name])
    restore_optimizer(another, *saved)
    step(others, another, 3)
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
