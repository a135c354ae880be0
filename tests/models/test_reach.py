"""Which linear modules what a model gives comes through: seen on models in which some are not on the way."""

from __future__ import annotations

import pytest
import torch

from loraft.adapters.targets import targets_in
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError
from loraft.models.model_structure import by_structure
from loraft.models.probe import spec_of
from loraft.models.reach import unreached
from tests.tiny import tiny_model
from tests.zoo.models import build

CROSS = tuple(f"encoder_attn.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj"))
NOT_ON_THE_WAY = {
    "pegasus": CROSS,  # a decoder alone has nothing to attend to there
    "gemma3n_text": ("altup.correction_coefs",),  # in training its weight is read past the module
    "jamba": ("mamba.dt_proj",),  # likewise
    "deepseek_v32": tuple(f"self_attn.indexer.{name}" for name in ("wq_b", "wk", "weights_proj")),  # it only chooses
    "opt": (),
    "dbrx": (),
    "ernie4_5_vl_moe": tuple(f"mlp.vision_moe.experts.{name}" for name in ("gate_up_proj", "down_proj")),
}


def given() -> dict[str, torch.Tensor]:
    row = torch.arange(3, 17)[None]
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


@pytest.mark.parametrize("model_type", NOT_ON_THE_WAY)
def test_what_no_gradient_reaches_is_found(model_type: str) -> None:
    model = build(model_type, "multimodal" if "_vl" in model_type else "causal")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert unreached(model, by_structure(model), given()) == NOT_ON_THE_WAY[model_type]
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_adapter_leaves_it_out_and_it_cannot_be_named() -> None:
    model = build("pegasus", "causal")
    spec = spec_of(model.config, "decoder")
    assert spec.unreached == CROSS
    everywhere = targets_in(model, spec, LoraSection(), quantized=False)
    assert not any("encoder_attn" in name for name in everywhere.modules)
    by_last_part = targets_in(model, spec, LoraSection(target_modules=["k_proj"]), quantized=False)
    assert by_last_part.modules == tuple(f"model.decoder.layers.{layer}.self_attn.k_proj" for layer in (0, 1))
    with pytest.raises(AdapterError, match="nothing would be learned") as raised:
        targets_in(model, spec, LoraSection(target_modules=["encoder_attn.k_proj"]), quantized=False)
    assert [problem.key for problem in raised.value.problems] == ["lora.target_modules"]


def test_experts_that_no_text_reaches_are_left_out_and_cannot_be_named() -> None:
    model = build("ernie4_5_vl_moe", "multimodal")
    spec = spec_of(model.config, "decoder")
    for lora in (LoraSection(), LoraSection(target_parameters=["experts.gate_up_proj", "experts.down_proj"])):
        adapted = {weight.name for weight in targets_in(model, spec, lora).weights}
        assert adapted == {
            f"model.language_model.layers.1.mlp.text_moe.experts.{name}" for name in ("gate_up_proj", "down_proj")
        }
    with pytest.raises(AdapterError, match="nothing would be learned") as raised:
        targets_in(model, spec, LoraSection(target_parameters=["vision_moe.experts.down_proj"]))
    assert [problem.key for problem in raised.value.problems] == ["lora.target_parameters"]


def test_a_family_of_the_table_that_is_used_otherwise_is_looked_into() -> None:
    alone = build("bart", "causal").config
    assert not alone.is_encoder_decoder
    assert spec_of(alone, "decoder").layers_path == "model.decoder.layers"
    assert spec_of(tiny_model("bart").config, "encoder_decoder").encoder_path == "model.encoder.layers"
    writer = build("bert", "causal")
    writer.config.architectures = [type(writer).__name__]
    assert spec_of(writer.config, "decoder").kind == "decoder"
