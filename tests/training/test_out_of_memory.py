"""Memory that runs out in a step or in an evaluation is explained as before the first, and what was saved stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraft import api
from loraft.distributed.ranks import ALONE
from loraft.errors import LoraftError, OutOfMemoryError
from loraft.planning.memory import MemoryPlan
from loraft.planning.run_plan import plan_run
from loraft.training.out_of_memory import memory_explained, parts_of_peak
from tests.training.building import tiny_config
from tests.training.small_memory import room_for


def refused(config: Any, tokens: int, *, trained: bool) -> str:
    with room_for(tokens, trained=trained), pytest.raises(OutOfMemoryError) as told:
        api.train(config)
    assert told.value.exit_code == 3
    (problem,) = told.value.problems
    assert problem.remedy is not None
    assert problem.remedy.endswith("then go on with `resume_anyway`")
    return str(problem)


@pytest.mark.slow
def test_in_an_evaluation_its_own_batch_is_named_first(tmp_path: Path) -> None:
    said = refused(tiny_config(tmp_path, data__eval=0.5, training__max_steps=1), 60, trained=True)
    assert said.startswith("training.per_device_eval_batch_size: ")
    assert "in the evaluation at step 1," in said
    assert "training.per_device_eval_batch_size: 4 reads half as many rows" in said


@pytest.mark.slow
def test_in_a_step_what_was_saved_before_is_gone_on_with(tmp_path: Path) -> None:
    """The steps before it were saved, and a smaller batch goes on from there."""
    settings: dict[str, Any] = {
        "training__save_steps": 1,
        "data__packing": "off",
        "training__per_device_train_batch_size": 2,
    }
    said = refused(tiny_config(tmp_path, **settings), 55, trained=False)
    assert "per_device_train_batch_size: 1 with training.gradient_accumulation_steps: 2 frees" in said
    saved = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved
    smaller = {"training__per_device_train_batch_size": 1, "training__gradient_accumulation_steps": 2}
    with room_for(55):
        assert api.train(tiny_config(tmp_path, **{**settings, **smaller}), resume_anyway=True).steps == 6


def test_what_else_is_raised_passes(tmp_path: Path) -> None:
    plan = plan_run(tiny_config(tmp_path))
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OutOfMemoryError("told"),
        LoraftError("x"),
    ):
        with pytest.raises(type(error)) as passed, memory_explained(plan, ALONE):
            raise error
        assert passed.value is error
    with pytest.raises(OutOfMemoryError), memory_explained(plan, ALONE):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_parts_are_those_of_the_device_the_largest_first() -> None:
    millions = (500, 1, 50, 60, 400, 49, 0)
    memory = MemoryPlan(*(10**6 * each for each in millions), host_weights=5 * 10**12)
    assert list(parts_of_peak(memory)) == ["weights", "activations", "optimizer", "gradients"]
