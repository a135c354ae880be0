"""Bytes counted from tensors, beside those that one counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraft.baselines.compare_methods import MeasuredCost
from loraft.baselines.measure_method import bytes_of, measure, trial_of
from loraft.config.choices import Method
from loraft.config.schema import RunConfig
from loraft.planning.run_plan import plan_run
from loraft.training.loop import fit
from tests.training.building import tiny_config, tiny_fit


def measured(config: RunConfig, method: Method, folder: Path, steps: int = 3) -> MeasuredCost:
    return measure(plan_run(trial_of(config, method, steps)), folder, lambda *_: None)


def test_the_bytes_of_full_fine_tuning_are_sixteen_a_parameter(tmp_path: Path) -> None:
    """Weights, gradients and two moments, each a float32."""
    cost = measured(tiny_config(tmp_path), "full", tmp_path)
    size = 4 * cost.trained_parameters
    assert cost.total_parameters == cost.trained_parameters
    assert cost.frozen_bytes == {}
    assert cost.memory["weights"] == pytest.approx(size, rel=0.01), "and a few buffers"
    assert (cost.memory["adapter"], cost.memory["gradients"], cost.saved_bytes) == (0, size, size)
    assert cost.memory["optimizer"] == pytest.approx(2 * size, rel=0.01), "and the counters of steps"


def test_the_bytes_of_lora_are_those_of_the_base_and_sixteen_a_trained_number(tmp_path: Path) -> None:
    cost = measured(tiny_config(tmp_path), "lora", tmp_path)
    size = 4 * cost.trained_parameters
    assert cost.frozen_bytes == {"float32": 4 * (cost.total_parameters - cost.trained_parameters)}
    assert (cost.memory["adapter"], cost.memory["gradients"]) == (size, size)
    assert cost.memory["optimizer"] == pytest.approx(2 * size, rel=0.2), "and a counter for each of many small factors"
    assert size < cost.saved_bytes < size + 20_000, "the adapter's file and its header"
    assert not (tmp_path / "run").exists(), "nothing is written where a run would be"


def test_the_bytes_of_qlora_are_half_a_byte_a_weight_with_the_constants(tmp_path: Path) -> None:
    plan = plan_run(trial_of(tiny_config(tmp_path), "qlora", 1))
    cost = measure(plan, tmp_path, lambda *_: None)
    assert cost.frozen_bytes.keys() == {"float32", "nf4"}
    plain = plan.shape.total_parameters - plan.shape.quantized_parameters
    assert cost.frozen_bytes["float32"] == 4 * plain
    least = plan.shape.quantized_parameters / 2
    assert least < cost.frozen_bytes["nf4"]
    assert cost.memory["weights"] >= sum(cost.frozen_bytes.values())


@pytest.mark.slow
def test_all_methods_see_the_same_rows_over_more_than_an_epoch(tmp_path: Path) -> None:
    """Twelve rows, four in a batch: an epoch is three steps."""
    config = tiny_config(tmp_path)
    costs = [measured(config, method, tmp_path / method, steps=4) for method in ("full", "lora", "qlora")]
    assert len({cost.rows_digest for cost in costs}) == 1
    assert len({(cost.rows, cost.tokens, cost.trained_tokens) for cost in costs}) == 1
    assert costs[0].rows == 16
    assert all(len(cost.losses) == 4 for cost in costs)
    assert costs[0].losses[0] == pytest.approx(costs[1].losses[0], rel=1e-5), "B is zero: LoRA begins at the base"
    assert costs[0].last_loss == costs[0].losses[-1]
    other = measured(tiny_config(tmp_path, seed=5), "lora", tmp_path / "other", steps=4)
    assert other.rows_digest != costs[0].rows_digest


@pytest.mark.slow
def test_the_loss_is_that_of_train(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    cost = measured(config, "lora", tmp_path / "trial", steps=6)
    run, state = tiny_fit(config)
    fit(run, state)
    assert state.last_loss == pytest.approx(cost.losses[-1], rel=1e-5)
    assert cost.trained_tokens == state.tokens


def test_the_parts_and_what_remains_are_the_peak(tmp_path: Path) -> None:
    cost = measured(tiny_config(tmp_path), "lora", tmp_path)
    parts = {name: size for name, size in cost.memory.items() if name != "peak_bytes"}
    assert parts.keys() == {"runtime", "weights", "adapter", "gradients", "optimizer", "activations"}
    assert sum(parts.values()) >= cost.memory["peak_bytes"]
    assert cost.tokens_per_second > 0


def test_a_storage_is_counted_once() -> None:
    one = torch.zeros(10)
    assert bytes_of([one, one[:5], one.view(2, 5), "no tensor", torch.zeros(3, dtype=torch.uint8)]) == 43


@pytest.mark.parametrize(
    ("own", "method", "rate"), [("lora", "full", 2e-4), ("lora", "qlora", 2e-3), ("full", "lora", 2e-2)]
)
def test_a_rate_that_is_set_is_that_of_the_configs_own_method(
    tmp_path: Path, own: Method, method: Method, rate: float
) -> None:
    config = tiny_config(tmp_path, method=own, training__learning_rate=2e-3)
    assert trial_of(config, method, 5).training.learning_rate == rate
    assert trial_of(config, own, 5).training.learning_rate == 2e-3
    assert trial_of(config, method, 5).training.max_steps == 5
    auto = tiny_config(tmp_path, method=own, training__learning_rate="auto")
    assert trial_of(auto, method, 5).training.learning_rate == "auto"


def test_where_a_schedule_ends_goes_with_the_rate(tmp_path: Path) -> None:
    """A lowest rate of LoRA would be above the peak of full fine-tuning."""
    kwargs = {"min_lr": 5e-5}
    config = tiny_config(
        tmp_path, training__learning_rate="auto", training__lr_scheduler_type="cosine_with_min_lr",
        training__lr_scheduler_kwargs=kwargs,
    )  # fmt: skip
    tried = [trial_of(config, method, 5) for method in ("lora", "full")]
    assert [each.training.lr_scheduler_kwargs.min_lr for each in tried] == [5e-5, 5e-6]  # type: ignore[union-attr]
    assert plan_run(tried[1]).steps == 5
