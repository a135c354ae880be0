"""Tensors of files that loading renames, or makes others of."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loraft.errors import ModelError
from loraft.models.auto_model import meta_model
from loraft.models.base_files import as_model_names, base_files, require_tensors
from loraft.models.safetensors_index import check_weights, expected_tensors, read_headers
from tests.models.test_probe import EXPERTS, small
from tests.tiny import save_tiny, tiny_model


def test_experts_that_are_saved_one_by_one_are_the_parts_of_one_tensor(tmp_path: Path) -> None:
    config = small("qwen3_moe", **EXPERTS)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, headers = meta_model(config), read_headers(tmp_path)
    found = as_model_names(model, headers)
    check_weights(tmp_path, expected_tensors(model), found)
    experts = found["model.layers.0.mlp.experts.gate_up_proj"]
    assert experts.converted
    assert {part.name.rpartition("experts.")[2] for part in experts.parts} == {
        f"{number}.{name}_proj.weight" for number in range(4) for name in ("gate", "up")
    }
    attention = found["model.layers.0.self_attn.q_proj.weight"]
    assert [part.name for part in attention.parts] == ["model.layers.0.self_attn.q_proj.weight"]
    assert not attention.converted
    used = [part.name for origin in found.values() for part in origin.parts]
    assert sorted(used) == sorted(headers)


def test_the_language_part_of_a_larger_model_has_other_names_in_its_files(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 48, "vocab_size": 320, "head_dim": 8}  # fmt: skip
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    headers = read_headers(tmp_path)
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    assert name not in headers
    origin = as_model_names(meta_model(config), headers)[name]
    assert (len(origin.parts), origin.converted) == (1, False)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_where_nothing_is_renamed_each_tensor_is_its_own(tmp_path: Path, model_type: str) -> None:
    found = as_model_names(tiny_model(model_type), read_headers(save_tiny(tmp_path, model_type)))
    assert not any(origin.converted or len(origin.parts) > 1 for origin in found.values())


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_file_without_a_tensor_is_refused_and_is_not_the_same_as_no_file(tmp_path: Path, has_weights: bool) -> None:
    save_file({}, save_tiny(tmp_path) / "model.safetensors")
    base = base_files(AutoConfig.from_pretrained(tmp_path), tmp_path, has_weights=has_weights)
    with pytest.raises(ModelError, match="tensors are missing") if has_weights else nullcontext():
        require_tensors(base, ())
