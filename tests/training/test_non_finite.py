"""NaN in a base or in what is trained: the error names the first module at fault, and a remedy that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraft import api
from loraft.errors import NonFiniteError
from loraft.training.loop import fit
from loraft.training.train_step import first_output
from tests.training.building import tiny_config, tiny_fit

DAMAGED = "the files that the run begins with are damaged"


def damage(folder: Path, name: str, value: float) -> None:
    """Put one number into a tensor of the base."""
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[5] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"])
def test_a_damaged_base_is_named_and_not_the_learning_rate(
    tmp_path: Path, name: str, method: str, value: float
) -> None:
    config = tiny_config(tmp_path, method=method)
    damage(tmp_path, name, value)
    with pytest.raises(NonFiniteError) as told:
        api.train(config)
    assert "is nan at step 1" in str(told.value)
    assert f"{name} holds NaN or infinity" in str(told.value)
    assert DAMAGED in str(told.value)
    assert "learning_rate" not in str(told.value)


@pytest.mark.parametrize(("task", "name"), [("seq2seq_lm", "encoder.block.1.layer.0.SelfAttention.q.weight"),
                                            ("seq_cls", "bert.encoder.layer.1.output.dense.weight")])  # fmt: skip
def test_a_damaged_base_is_named_for_every_task(tmp_path: Path, task: str, name: str) -> None:
    config = tiny_config(tmp_path, task=task)
    damage(tmp_path, name, float("nan"))
    with pytest.raises(NonFiniteError, match=f"{name} holds NaN or infinity"):
        api.train(config)


def test_weights_that_training_has_spoilt_are_told_with_the_learning_rate(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path))
    state.step = 3
    name = next(name for name in run.adapted.trainable if name.endswith("layers.2.mlp.up_proj.lora_B.default.weight"))
    run.adapted.trainable[name].data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as told:
        fit(run, state)
    assert "model.layers.2.mlp.up_proj.lora_B.default.weight holds NaN or infinity" in str(told.value)
    assert "a lower training.learning_rate" in str(told.value)


def test_outputs_that_overflow_are_named_where_the_weights_are_finite(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path))
    up, down = (run.adapted.loaded.model.get_submodule(f"model.layers.1.mlp.{part}_proj") for part in ("up", "down"))
    up.base_layer.weight.data.mul_(1e30)  # type: ignore[union-attr,operator]
    down.base_layer.weight.data.mul_(1e30)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteError, match=r"the weights are finite, and model\.layers\.1\.mlp\.\w+ is the first"):
        fit(run, state)


def test_a_model_whose_outputs_are_finite_has_no_module_at_fault(tmp_path: Path) -> None:
    run, _ = tiny_fit(tiny_config(tmp_path))
    batches: Any = [window.batches for window in run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0))]

    assert first_output(run.loss, (run.batch(part) for parts in batches for part in parts)) is None
