"""Merges of tensors that loading makes of others in the files, whatever changes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loraft import api
from loraft.errors import NonFiniteError
from loraft.merging.merged_tensors import RemadeTensors
from loraft.merging.prepare_merge import prepare_merge, resolve_weighted
from loraft.models.safetensors_index import SINGLE
from tests.merging.merging import own_adapter
from tests.tiny import save_tiny, tiny_tokenizer

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 96, "vocab_size": 320, "max_position_embeddings": 256, "head_dim": 16,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose files hold gate, queries, keys and values in one tensor."""
    config = AutoConfig.for_model("hrm_text", **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert any("gqkv_proj" in name for name in load_file(tmp_path / "model" / SINGLE))
    return tmp_path / "model"


def merged(adapter: Path, out: Path, **options: Any) -> PreTrainedModel:
    report = api.merge(str(adapter), out, **options)
    assert report.max_abs_logit_difference < 1e-4
    return AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_is_in_one_tensor_of_the_files_is_merged_and_put_back(tmp_path: Path, base: Path, method: str) -> None:
    """C26: of a base in 4 bits what no update changes is what training had, too."""
    adapter = tmp_path / "adapter"
    own_adapter(adapter, base, method, target_modules=["q_proj"], layers="last:1")
    model = merged(adapter, tmp_path / "out", dtype="float32")
    assert load_file(base / SINGLE).keys() == load_file(tmp_path / "out" / SINGLE).keys()
    plain = AutoModelForCausalLM.from_pretrained(base)
    changed = {name for name, own in model.named_parameters() if not torch.equal(own, plain.get_parameter(name))}
    assert any("q_proj" in name for name in changed)
    assert any("v_proj" in name for name in changed) == (method == "qlora")


@pytest.mark.slow
def test_a_module_that_was_trained_whole_is_put_back_too(tmp_path: Path, base: Path) -> None:
    adapter = tmp_path / "adapter"
    adapted = own_adapter(
        adapter, base, target_modules=["q_proj"], modules_to_save=["model.L_module.layers.0.self_attn.k_proj"]
    )
    model = merged(adapter, tmp_path / "out")
    name = "model.L_module.layers.0.self_attn.k_proj"
    whole = adapted.model.get_base_model().get_submodule(name).modules_to_save["default"].weight
    assert torch.equal(model.get_submodule(name).weight, whole)


@pytest.mark.slow
def test_what_is_not_finite_is_found_before_it_is_written(tmp_path: Path, base: Path) -> None:
    own_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], amount=1e30)
    with pytest.raises(NonFiniteError, match=r"q_proj.* holds NaN or infinity"):
        api.merge(str(tmp_path / "adapter"), tmp_path / "out", verified=False)
    assert not (tmp_path / "out").exists()


def test_no_more_is_held_than_the_tensors_of_one_layer(tmp_path: Path) -> None:
    """A mixture's files hold each expert by itself, layer after layer: they are made as they are written."""
    save_tiny(tmp_path / "base", "mixtral")
    own_adapter(tmp_path / "adapter", tmp_path / "base")
    remade = RemadeTensors(prepare_merge(*resolve_weighted(str(tmp_path / "adapter"), ())))
    names = [name for name in load_file(tmp_path / "base" / SINGLE) if ".experts." in name]
    layers = {name.split(".")[2] for name in names}
    assert len(layers) > 1
    held = []
    for name in sorted(names):
        assert remade.take(name) is not None
        held.append(len(remade._made))
    assert max(held) < len(names) / len(layers)
    assert held[-1] == 0
    assert remade.take("model.norm.weight") is None
