"""The same arithmetic on a loaded model: what `generate --merge` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraft.adapters.effect import merged, updated
from loraft.adapters.lora_factors import LoraFactors
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import QuantizationSection
from loraft.merging.equivalence import kl_divergence
from tests.adapters.setting import logits, tiny_loaded
from tests.merging.merging import KINDS, own_adapter, peft_adapter, save_base

EXACT = 1e-5

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {}),
    "tied": ("llama tied", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "whole": ("llama", {"modules_to_save": ["lm_head", "norm"], "target_modules": ["q_proj"]}),
    "head": ("llama tied", {"target_modules": ["lm_head", "q_proj"]}),
    "embedding": ("llama tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "conv1d": ("gpt2", {}),
    "conv1d dora": ("gpt2", {"use_dora": True}),
    "fused": ("phi3", {}),
}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("shape", SHAPES)
def test_c27_merged_is_adapted(tmp_path: Path, shape: str) -> None:
    kind, lora = SHAPES[shape]
    base = save_base(tmp_path / "base", kind)
    peft_adapter(tmp_path / "adapter", base, kind, **lora)
    adapted = load_adapters(tiny_loaded(base, KINDS[kind].model_type), {"mine": tmp_path / "adapter"})
    before = logits(adapted.model)
    model = merged(adapted)
    torch.testing.assert_close(logits(model), before, atol=EXACT, rtol=EXACT)
    assert not any("lora" in name or "modules_to_save" in name for name, _ in model.named_modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    unties = shape in ("head", "embedding")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
        shape == "tied" or "gpt2" in kind
    )
    assert not unties or model.config.tie_word_embeddings is False


@pytest.mark.parametrize("transposed", [False, True])
def test_a_dora_of_an_output_whose_weights_are_zero_is_merged_to_zeros(transposed: bool) -> None:
    """Its norm is 0, and so is its magnitude: in training the factor of both is 0."""
    weight = torch.randn(4, 6)
    weight[1] = 0
    update = LoraFactors(torch.randn(2, 6), torch.zeros(4, 2), 0.5, magnitude=weight.norm(dim=1))
    stored = weight.T.contiguous() if transposed else weight
    torch.testing.assert_close(updated(stored, [update], transposed=transposed), stored)


@pytest.mark.slow
def test_the_adapter_that_is_named_is_merged_and_no_other(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name, seed in (("a", 1), ("b", 2)):
        peft_adapter(tmp_path / name, base, seed=seed)
    folders = {name: tmp_path / name for name in ("a", "b")}
    alone = logits(load_adapters(tiny_loaded(base), {"b": tmp_path / "b"}).model)
    model = merged(load_adapters(tiny_loaded(base), folders), "b")
    torch.testing.assert_close(logits(model), alone, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_c26_modules_in_4_bits_become_ordinary_ones(tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base")
    stored = QuantizationSection.model_validate({"type": kind})
    adapted = own_adapter(tmp_path / "adapter", base, "qlora", quantization=stored)
    before = logits(adapted.model)
    model = merged(adapted)
    assert kl_divergence(before, logits(model)).mean() <= 2e-3
    torch.testing.assert_close(logits(model), before, atol=EXACT, rtol=EXACT)
    assert {type(part) for part in model.modules() if isinstance(part, nn.Linear)} == {nn.Linear}
