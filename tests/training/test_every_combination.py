"""Every method, dtype, task and layout trains: two steps, a finite loss, and every trained tensor moves."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from loraft.config.schema import RunConfig
from loraft.models.modules import linear_modules
from loraft.models.registry import FAMILIES, GROUPS
from loraft.training.loop import fit
from tests.cuda_rehearsal.cases import BY_EACH_METHOD
from tests.tiny import TELLING, mostly_slow, tiny_model
from tests.training.building import MODEL_OF, tiny_config, tiny_fit
from tests.training.wide import wide_sizes

LAYOUTS = [("causal_lm", "auto"), ("causal_lm", "off"), ("seq2seq_lm", "auto"), ("seq_cls", "auto")]
"""Tasks, and how `data.packing` lays their rows: pairs and labelled rows are padded whatever it says."""
AS_ON_CUDA = sorted({name for task in GROUPS.values() for name in task})


def train_two_steps(config: RunConfig, *, norms_in_float32: bool = False) -> None:
    """Train, and assert that the losses are finite and that all that is to be trained was planned, and has moved."""
    run, state = tiny_fit(config)
    if norms_in_float32:
        give_float32_after_norms(run.adapted.loaded.model)
    planned = sorted(tensor.shape for tensor in run.plan.shape.trained)
    assert planned == sorted(tuple(weight.shape) for weight in run.adapted.trainable.values())
    before = {name: weight.detach().clone() for name, weight in run.adapted.trainable.items()}
    fit(run, state)
    assert state.step == 2
    assert state.last_loss is not None
    assert math.isfinite(state.last_loss)
    still = [name for name, weight in run.adapted.trainable.items() if torch.equal(weight, before[name])]
    assert before
    assert not still


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(("task", "packing"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_it_trains(tmp_path: Path, method: str, dtype: str, task: str, packing: str) -> None:
    options: dict[str, Any] = {"task": task, "method": method, "model__dtype": dtype, "data__packing": packing}
    train_two_steps(tiny_config(tmp_path, training__max_steps=2, **options))


def give_float32_after_norms(model: nn.Module) -> None:
    """Have every norm give float32, as CUDA's autocast has it: the CPU's gives the dtype that it was given."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = partial(layer_norm_in_float32, module)  # type: ignore[method-assign]
        elif "Norm" in type(module).__name__:
            module.register_forward_hook(lambda _module, _inputs, out: out.float())


def layer_norm_in_float32(module: nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = (None if part is None else part.float() for part in (module.weight, module.bias))
    return layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)


def task_of(model_type: str) -> str:
    return {"decoder": "causal_lm", "encoder_decoder": "seq2seq_lm", "encoder": "seq_cls"}[FAMILIES[model_type].kind]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        *mostly_slow([(name, "lora") for name in AS_ON_CUDA], *((name, "lora") for name in MODEL_OF.values())),
        *(
            pytest.param(name, method, marks=pytest.mark.slow)
            for name in sorted(BY_EACH_METHOD)
            for method in ("qlora", "full")
        ),
    ],
)
def test_it_trains_where_norms_give_float32(tmp_path: Path, model_type: str, method: str) -> None:
    """As on CUDA, where inputs of linear layers are float32 while products are bfloat16."""
    options: dict[str, Any] = {"model_type": model_type, "method": method, "model__dtype": "bfloat16"}
    train_two_steps(
        tiny_config(tmp_path, task=task_of(model_type), training__max_steps=2, **options), norms_in_float32=True
    )


@pytest.mark.parametrize("model_type", mostly_slow(AS_ON_CUDA, *TELLING))
def test_what_the_gpu_tests_train_has_whole_blocks_of_inputs(model_type: str) -> None:
    """On CUDA bitsandbytes warns of layers whose inputs are no multiple of 64."""
    model = tiny_model(model_type, **wide_sizes(model_type))
    assert [name for name, (inputs, _) in linear_modules(model).items() if inputs % 64] == []


@pytest.mark.slow
def test_a_bias_of_the_head_is_trained_with_all_biases(tmp_path: Path) -> None:
    train_two_steps(tiny_config(tmp_path, model_type="phi", lora__bias="all", training__max_steps=2))
