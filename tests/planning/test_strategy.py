"""What each rank holds: chosen by what fits, told before the first step, refused where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from loraft.config.distributed_section import DistributedSection
from loraft.distributed.ranks import Ranks
from loraft.errors import ConfigError
from loraft.models.device import StatedDevice
from loraft.planning.memory import MemoryPlan
from loraft.planning.run_plan import plan_run
from loraft.planning.strategy import Parts, hindrances
from loraft.training.run_dir import saved_bytes
from tests.training.building import tiny_config
from tests.words import Wording

TWO = Ranks(0, 2, 0, 2)
WHOLE = MemoryPlan(weights=1000, adapter=40, gradients=40, optimizer=80, activations=7, logits=3, runtime=1)


@pytest.mark.parametrize(
    ("settings", "offloads", "weights", "host"),
    [
        # 460 lie outside of the layers, two layers of 200 are whole, and of 960 a quarter is this rank's, with 40.
        ({}, False, 460 + 400 + 240 + 40, 0),
        ({"reshard": False}, False, 460 + 500 + 240 + 40, 0),
        ({"cpu_offload": True}, True, 460 + 400, 240 + 40 + (40 + 40 + 80) // 4),
    ],
)
def test_the_memory_of_a_rank_by_hand(settings: dict[str, Any], offloads: bool, weights: int, host: int) -> None:
    parts = Parts(1000, (200, 200, 100), 40, 4, DistributedSection(**settings), offloads)
    of_rank = parts.of(WHOLE)
    assert (of_rank.weights, of_rank.host_weights) == (weights, host)
    assert of_rank.adapter + of_rank.gradients + of_rank.optimizer == (0 if offloads else 10 + 10 + 20)
    assert of_rank.peak_bytes == weights + 7 + 3 + 1 + (0 if offloads else 40)


def test_gradients_of_a_whole_model_are_whole_a_layer_at_a_time() -> None:
    whole = replace(WHOLE, adapter=0, gradients=1000, optimizer=2000)
    of_rank = Parts(1000, (300, 300), 0, 4, DistributedSection(), offloads=False).of(whole)
    assert (of_rank.weights, of_rank.gradients, of_rank.optimizer) == (1000 + 250, 1000 + 250, 500)


def test_auto_takes_parts_where_a_rank_that_holds_everything_would_not_fit(tmp_path: Path, wording: Wording) -> None:
    config = tiny_config(tmp_path, method="qlora", training__tiled_mlp=False, training__gradient_checkpointing=True)
    needed = plan_run(config, StatedDevice("cuda", 10**9), ranks=TWO)
    assert needed.config.distributed.strategy == "ddp"
    short = plan_run(config, StatedDevice("cuda", needed.memory.peak_bytes - 1), ranks=TWO)
    assert short.config.distributed.strategy == "fsdp2"
    assert short.config.training.optim == "adamw", "what is paged is not in parts"
    wording("\n".join(note for plan in (needed, short) for note in plan.notes if "distributed.strategy" in note))


def test_one_process_takes_no_parts_and_says_so(tmp_path: Path, wording: Wording) -> None:
    alone = plan_run(tiny_config(tmp_path, distributed__strategy="fsdp2", distributed__reshard=False))
    on_cpu = plan_run(tiny_config(tmp_path, distributed__strategy="fsdp2", distributed__cpu_offload=True), ranks=TWO)
    wording("\n".join(note for plan in (alone, on_cpu) for note in plan.notes if "distributed." in note))


def test_what_goes_only_with_whole_weights_is_refused_with_the_alternative(tmp_path: Path, wording: Wording) -> None:
    config = tiny_config(tmp_path, distributed__strategy="fsdp2", training__optim="adafactor")
    with pytest.raises(ConfigError) as refused:
        plan_run(config, ranks=TWO)
    known = plan_run(tiny_config(tmp_path, method="qlora"))
    shape = known.shape
    in_8_bits = replace(shape, quantization=known.config.quantization.model_copy(update={"type": "int8"}))
    experts = replace(shape, few_bits=replace(shape.few_bits, experts={"experts": (4, 8, 8)}))
    streams = known.config.model.model_copy(update={"stream_layers": True})
    eva = known.config.lora.model_copy(update={"init": "eva"})
    changed = [
        replace(known, shape=in_8_bits),
        replace(known, shape=experts),
        replace(known, config=known.config.model_copy(update={"model": streams})),
        replace(known, config=known.config.model_copy(update={"lora": eva})),
        replace(known, placement=replace(known.placement, dtype=torch.float16)),
    ]
    found = [problem for each in changed for problem in hindrances(each)]
    assert len(found) == len(changed)
    wording("\n".join(str(problem) for problem in (*refused.value.problems, *found)))


def test_copies_need_more_than_one_machine(tmp_path: Path, wording: Wording) -> None:
    config = tiny_config(tmp_path, distributed__strategy="fsdp2", distributed__hybrid_shard=True)
    with pytest.raises(ConfigError) as refused:
        plan_run(config, ranks=TWO)
    assert plan_run(config, ranks=Ranks(0, 4, 0, 2)).config.distributed.strategy == "fsdp2"
    wording(str(refused.value))


def test_what_says_something_of_parts_does_not_go_with_whole_weights(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"is of fsdp2"):
        tiny_config(tmp_path, distributed__strategy="ddp", distributed__cpu_offload=True)


def test_a_checkpoint_is_as_large_however_many_ranks_hold_it(tmp_path: Path) -> None:
    alone = plan_run(tiny_config(tmp_path))
    parts = plan_run(tiny_config(tmp_path, distributed={"strategy": "fsdp2"}), ranks=TWO)
    assert parts.memory.optimizer < alone.memory.optimizer
    numbers = alone.shape.trainable_parameters
    assert saved_bytes(parts) == saved_bytes(alone) == (4 * numbers, 8 * numbers)
