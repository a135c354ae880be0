"""What makes a run fit: the cheapest change first, and no more of it than is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.baselines.fit_memory import fit_memory, require_memory
from loraft.config.schema import RunConfig
from loraft.distributed.ranks import Ranks
from loraft.errors import ResourceError
from loraft.models import device as placement
from loraft.models.device import CUDA_TAKES, StatedDevice
from loraft.planning import known_run
from loraft.planning.run_plan import plan_run
from tests.training.building import tiny_config

BATCH = "training.per_device_train_batch_size"
ACCUMULATION = "training.gradient_accumulation_steps"
CHECKPOINTING = "training.gradient_checkpointing"


def needed(config: RunConfig) -> int:
    """What a run is predicted to need on a GPU, and CUDA itself."""
    return plan_run(config, StatedDevice("cuda", 10**12)).memory.peak_bytes + CUDA_TAKES


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(tmp_path, method="full", training__gradient_checkpointing=False)


def changed(config: RunConfig, **training: Any) -> RunConfig:
    method = training.pop("method", config.method)
    return config.model_copy(update={"method": method, "training": config.training.model_copy(update=training)})


def test_what_fits_is_not_changed(config: RunConfig) -> None:
    assert not fit_memory(config, gpu_memory=needed(config)).changes


def test_a_smaller_state_costs_no_speed_and_comes_first(config: RunConfig) -> None:
    enough = needed(changed(config, optim="adamw_8bit"))
    assert enough < needed(config)
    assert fit_memory(config, gpu_memory=enough).changes == {"training.optim": "adamw_8bit"}


def test_then_the_largest_batch_that_fits_with_as_many_rows_a_step(config: RunConfig) -> None:
    config = changed(config, optim="adafactor")
    enough = needed(changed(config, per_device_train_batch_size=2, gradient_accumulation_steps=2))
    fitting = fit_memory(config, gpu_memory=enough)
    assert fitting.changes == {BATCH: 2, ACCUMULATION: 2}
    assert fitting.plan.memory.peak_bytes + CUDA_TAKES == enough


@pytest.mark.slow
def test_then_checkpointing_and_at_last_another_method(config: RunConfig) -> None:
    config = changed(config, method="lora", optim="adafactor")
    smallest = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    as_it_is = fit_memory(config, gpu_memory=needed(changed(config, **smallest))).changes
    assert as_it_is == {CHECKPOINTING: True, BATCH: 1, ACCUMULATION: 4}
    whole = changed(config, method="full")
    lora = fit_memory(whole, gpu_memory=needed(changed(config, **smallest)))
    assert lora.changes["method"] == "lora"
    assert lora.changes["training.learning_rate"] == 0.1, "ten times the rate of full, as the defaults have it"


@pytest.mark.slow
def test_then_inputs_on_the_host_and_last_of_all_layers_that_are_fed(config: RunConfig) -> None:
    smallest = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": "offload"}
    least = changed(config, method="qlora", optim="adafactor", **smallest)
    kept = changed(least, gradient_checkpointing=True)
    offloaded = fit_memory(kept, gpu_memory=needed(least))
    assert offloaded.changes == {CHECKPOINTING: "offload"}
    assert "from what the host keeps" in offloaded.words
    fed = least.model_copy(update={"model": least.model.model_copy(update={"stream_layers": True})})
    assert needed(fed) < needed(least)
    assert fit_memory(least, gpu_memory=needed(fed)).changes == {"model.stream_layers": True}
    many = changed(fed, gradient_checkpointing=True, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    before_fewer_rows = fit_memory(many, gpu_memory=needed(changed(many, gradient_checkpointing="offload")))
    assert before_fewer_rows.changes == {CHECKPOINTING: "offload"}, "of fed layers a smaller batch costs more"
    whole = fit_memory(changed(least, method="full"), gpu_memory=needed(fed))
    assert (whole.changes["method"], whole.changes["model.stream_layers"]) == ("qlora", True)


def test_memory_that_was_freed_meanwhile_suffices(config: RunConfig) -> None:
    plan = plan_run(config)
    tight = replace(plan, placement=replace(plan.placement, available_bytes=plan.memory.peak_bytes - 1))
    require_memory(config, tight)


def test_what_does_not_fit_several_ranks_is_refused_though_it_fits_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two on one machine have half of its memory each."""
    monkeypatch.setattr("loraft.planning.memory.held_bytes", lambda _: 0)  # the process may let go of some meanwhile
    config, ranks = changed(config, method="lora", optim="adafactor"), Ranks(0, 2, 0, 2)
    alone = plan_run(config)
    there = replace(alone.placement, available_bytes=2 * alone.memory.peak_bytes - 10**6)
    monkeypatch.setattr(known_run, "select_device", lambda *_: there)
    plan = plan_run(config, ranks=ranks)
    with pytest.raises(ResourceError):
        require_memory(config, plan, None, ranks)


def test_a_change_that_cannot_be_is_not_named(config: RunConfig) -> None:
    """Where each rank is to hold a part, the optimizer's state cannot be in 8 bits."""
    config, ranks = changed(config, per_device_train_batch_size=1), Ranks(0, 2, 0, 2)
    config = config.model_copy(update={"distributed": config.distributed.model_copy(update={"strategy": "fsdp2"})})
    needed_by_each = plan_run(config, StatedDevice("cuda", 10**12), ranks=ranks).memory.peak_bytes + CUDA_TAKES
    tight = StatedDevice("cuda", needed_by_each - 1)
    with pytest.raises(ResourceError, match="It fits with") as refused:
        require_memory(config, plan_run(config, tight, ranks=ranks), tight, ranks)
    assert "adamw_8bit" not in str(refused.value)


def test_what_no_change_makes_fit_is_refused(config: RunConfig) -> None:
    least = changed(config, method="qlora", optim="adafactor", per_device_train_batch_size=1)
    with pytest.raises(ResourceError, match="at its smallest") as refused:
        fit_memory(least, gpu_memory=CUDA_TAKES + 1000)
    assert refused.value.problems[0].key == "model.name_or_path"


@pytest.mark.slow
def test_an_adapter_that_is_too_large_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, lora__r=10**7)
    with pytest.raises(ResourceError, match=r"lora\.r: at its smallest"):
        fit_memory(config, gpu_memory=CUDA_TAKES + 10**9)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_run_that_does_not_fit_is_refused_with_what_makes_it_fit(
    config: RunConfig, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = placement.select_device
    monkeypatch.setattr("loraft.planning.memory.held_bytes", lambda _: 0)
    enough = plan_run(changed(config, optim="adamw_8bit")).memory.peak_bytes

    def small(*given: Any) -> placement.DeviceConfig:
        return replace(whole(*given), available_bytes=enough)

    monkeypatch.setattr("loraft.planning.known_run.select_device", small)
    with pytest.raises(ResourceError, match="needs about") as refused:
        getattr(api, verb)(config)
    assert "training.optim: adamw_8bit" in str(refused.value.problems[0].remedy)


@pytest.mark.slow
def test_processes_that_share_the_memory_of_a_cpu_are_refused_where_it_does_not_suffice(config: RunConfig) -> None:
    with pytest.raises(ResourceError, match="Fewer processes share the memory of this machine"):
        api.check(config, num_processes=10_000)
