"""Adapters that begin with directions of the base's weights: what is saved serves on the base as it is (C48)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from loraft.adapters.computed_starts import first_directions, principal
from loraft.adapters.effect import acting
from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.save_adapter import load_adapters, restore, save_adapter
from tests.adapters.setting import FACTS, IDS, Rendering, disturb, logits, run_config, tiny_loaded
from tests.merging.merging import own_adapter, save_base

SHAPES = {
    "pissa": ("llama", {"init": "pissa"}),
    "olora": ("llama", {"init": "olora", "dropout": 0.1}),
    "conv1d": ("gpt2", {"init": "pissa", "use_rslora": True}),
    "patterns": ("llama", {"init": "olora", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "dora": ("llama", {"init": "pissa", "use_dora": True}),
    "bfloat16": ("llama", {"init": "pissa"}),
}


def begun(folder: Path, shape: str, *, dtype: torch.dtype = torch.float32) -> AdaptedModel:
    model_type, lora = SHAPES[shape]
    config = run_config(model=str(folder / "base"), **lora)
    return attach(tiny_loaded(folder / "base", model_type, dtype=dtype), config)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("shape", SHAPES)
def test_c48_it_begins_at_the_base_and_is_saved_as_a_plain_update_for_it(tmp_path: Path, shape: str) -> None:
    dtype = torch.bfloat16 if shape == "bfloat16" else torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        adapted = begun(tmp_path, shape, dtype=dtype)
        with acting(adapted.model, None) as model:
            base = logits(model)
        adapted.set_training(False)
        torch.testing.assert_close(logits(adapted.model), base, atol=1e-5, rtol=1e-5)
        assert not any(bool((weight == 0).all()) for weight in adapted.trainable.values())
        disturb(adapted.trainable)
        trained = logits(adapted.model)
        assert not torch.allclose(trained, base, atol=1e-1)
        config = run_config(model=str(tmp_path / "base"), **SHAPES[shape][1])
        save_adapter(adapted, tmp_path / "adapter", config=config, renderer=Rendering(), facts=FACTS)
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype), tmp_path / "adapter"
        )
        again = load_adapters(
            tiny_loaded(tmp_path / "base", SHAPES[shape][0], dtype=dtype), {"a": tmp_path / "adapter"}
        )
        for model in (plain, again.model):
            torch.testing.assert_close(logits(model), trained, atol=1e-5, rtol=1e-5)
        before = {name: weight.clone() for name, weight in adapted.trainable.items()}
        fresh = begun(tmp_path, shape, dtype=dtype)
        restore(fresh, tmp_path / "adapter")
        fresh.set_training(False)
        assert all(torch.equal(weight, before[name]) for name, weight in fresh.trainable.items())
        assert torch.equal(logits(fresh.model), trained)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_gradients_are_those_of_peft_on_its_changed_base(tmp_path: Path, start: str) -> None:
    config = run_config(model=str(tmp_path / "base"), init=start, target_modules=["q_proj", "v_proj"])
    adapted = attach(tiny_loaded(tmp_path / "base"), config)
    adapted.set_training(True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    )
    for model in (adapted.model, theirs):
        model(input_ids=IDS, labels=IDS).loss.backward()
    here, there = (_updates(model) for model in (adapted.model, theirs))
    assert len(here) == 6
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def _updates(model: nn.Module) -> list[torch.Tensor]:
    """What a small step along the gradient would change of B A: free of the signs that a decomposition may choose."""
    found = []
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found.append((b.grad @ a + b @ a.grad).detach())
    return found


def test_larger_weights_have_their_first_directions_estimated() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 300, generator=generator)
    left, values, right = first_directions(weight, 8, generator)
    exact = torch.linalg.svdvals(weight)
    torch.testing.assert_close(values[:4], exact[:4], rtol=1e-2, atol=0)
    a, b = principal(weight, 8, 2.0, generator)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(2.0 * b @ a, (u[:, :8] * s[:8]) @ vh[:8], atol=1e-4, rtol=1e-4)
    assert (left.shape, right.shape) == ((200, 24), (24, 300))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's files have weights `[in, out]`, of which some are square
def test_loftq_begins_with_what_4_bits_leave_out(tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base", kind)
    plain = own_adapter(tmp_path / "plain", base, "qlora", amount=0)
    started = own_adapter(tmp_path / "loftq", base, "qlora", amount=0, init="loftq", r=16)
    original = logits(AutoModelForCausalLM.from_pretrained(base))
    apart = [float((logits(adapted.model) - original).norm()) for adapted in (plain, started)]
    assert apart[1] < 0.5 * apart[0], apart
