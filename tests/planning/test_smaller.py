"""What a change frees is what planning the changed run says, without its rows being read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft.config.change_config import with_values
from loraft.distributed.ranks import ALONE, Ranks
from loraft.models.device import StatedDevice
from loraft.planning.run_plan import RunPlan, plan_run
from loraft.planning.smaller import memory_with, most_saving
from tests.training.building import tiny_config

GPU = StatedDevice("cuda", 10**12)
CHANGES: list[dict[str, Any]] = [
    {},
    {"training.optim": "adamw_8bit"},
    {"training.gradient_checkpointing": True},
    {"training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 2},
    {"method": "qlora"},
    {"model.stream_layers": True},
    {"data.max_length": 28, "data.on_overlength": "truncate"},
]


def planned(folder: Path, **settings: Any) -> RunPlan:
    return plan_run(tiny_config(folder, training__gradient_checkpointing=False, **settings), GPU)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes), "nothing"))
@pytest.mark.slow_after(3)
def test_a_change_is_planned_as_the_changed_config_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = planned(tmp_path)
    again = plan_run(with_values(plan.config, changes), GPU).memory
    assert memory_with(plan, changes, ALONE).as_dict() == again.as_dict()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq_lm", "seq_cls", "preference"])
def test_rows_of_every_task_are_cut_as_they_would_be_read(tmp_path: Path, task: str) -> None:
    plan = planned(tmp_path, task=task)
    longest = max(example.longest for example in plan.data.train)
    changes = {"data.max_length": longest - 3, "data.on_overlength": "truncate"}
    again = plan_run(with_values(plan.config, changes), GPU).memory.peak_bytes
    assert memory_with(plan, changes, ALONE).peak_bytes == pytest.approx(again, rel=0.02)
    assert again < plan.memory.peak_bytes


def test_the_most_saving_come_first_with_what_they_cost(tmp_path: Path) -> None:
    plan = planned(tmp_path, method="full", training__per_device_train_batch_size=8)
    found = most_saving(plan, ALONE, 3)
    assert len(found) == 3
    assert [each.freed for each in found] == sorted((each.freed for each in found), reverse=True)
    for each in found:
        assert each.freed == plan.memory.peak_bytes - memory_with(plan, each.changes, ALONE).peak_bytes > 0
        assert " frees " in each.words
        assert each.words.endswith(")")


def test_what_hinders_parts_is_not_named_to_ranks_that_hold_parts(tmp_path: Path) -> None:
    settings = {"method": "full", "distributed": {"strategy": "fsdp2"}}
    config = tiny_config(tmp_path, training__gradient_checkpointing=False, **settings)
    ranks = Ranks(0, 2, 0, 2)
    plan = plan_run(config, GPU, ranks=ranks)
    changes = [each.changes for each in most_saving(plan, ranks, 9)]
    assert changes
    assert not [each for each in changes if "training.optim" in each or "model.stream_layers" in each]
