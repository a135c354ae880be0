"""Which adapter acts, and that nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraft.adapters.effect import acting
from loraft.adapters.inject import AdaptedModel, attach
from loraft.adapters.save_adapter import load_adapters, save_adapter
from tests.adapters.setting import FACTS, Rendering, disturb, logits, run_config, tiny_loaded


def trained(folder: Path, seed: int = 1, **lora: object) -> AdaptedModel:
    adapted = attach(tiny_loaded(folder / "base", tie_word_embeddings=False), run_config(**lora))
    disturb(adapted.trainable, seed)
    return adapted


def two(folder: Path) -> AdaptedModel:
    """One adapter of low rank, and one with a head of its own besides."""
    for seed, (name, lora) in enumerate({"one": {}, "two": {"modules_to_save": ["lm_head"]}}.items()):
        config = run_config(**lora)
        save_adapter(trained(folder, seed, **lora), folder / name, config=config, renderer=Rendering(), facts=FACTS)
    return load_adapters(tiny_loaded(folder / "base"), {"one": folder / "one", "two": folder / "two"})


@pytest.mark.slow
def test_the_base_answers_as_without_adapters(tmp_path: Path) -> None:
    model = two(tmp_path).model
    with acting(model, None) as base:
        assert torch.equal(logits(base), logits(tiny_loaded(tmp_path / "base").model))


@pytest.mark.slow
def test_what_acted_before_acts_afterwards_after_an_error_too(tmp_path: Path) -> None:
    model = two(tmp_path).model
    before = logits(model)
    for name in ("two", None):
        with acting(model, name):
            assert not torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)
        with pytest.raises(RuntimeError), acting(model, name):
            raise RuntimeError
        assert torch.equal(logits(model), before)
    with acting(model, "two"), acting(model, None), acting(model, "one"):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["default", None])
def test_what_is_trained_stays_trained(tmp_path: Path, name: str | None) -> None:
    """Peft makes what it switches on trainable and what it switches off not; a run goes on with what it trains."""
    adapted = trained(tmp_path, modules_to_save=["lm_head"])
    before = {key for key, weight in adapted.model.named_parameters() if weight.requires_grad}
    with acting(adapted.model, name):
        pass
    assert {key for key, weight in adapted.model.named_parameters() if weight.requires_grad} == before


def test_a_model_without_adapters_is_left_alone(tmp_path: Path) -> None:
    model = tiny_loaded(tmp_path / "base").model
    for name in ("any", None):
        with acting(model, name) as same:
            assert same is model
