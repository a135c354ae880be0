"""Adapters of peft with the head or the embedding among their targets, beside which peft saves the base's weight."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.adapter_reader import open_adapter
from loraft.adapters.lora_factors import ADAPTER_WEIGHTS
from loraft.adapters.save_adapter import load_adapters
from loraft.errors import AdapterError
from tests.adapters.setting import logits, tiny_loaded
from tests.merging.merging import prepared, written
from tests.tiny import save_tiny

HEAD, EMBEDDING = "lm_head", "embed_tokens"


def adapter_of_peft(folder: Path, *targets: str, tied: bool = False, grown: int = 0) -> PeftModel:
    """A base in `folder`/base, and an adapter as peft saves it by default; `grown` words are new."""
    base = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "base", tie_word_embeddings=tied))
    if grown:
        base.resize_token_embeddings(base.config.vocab_size + grown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied embeddings and of layers that it saves too
        chosen = LoraConfig(r=2, target_modules=["q_proj", *targets], init_lora_weights=False, task_type="CAUSAL_LM")
        torch.manual_seed(1)
        model = get_peft_model(base, chosen)
        model.save_pretrained(folder / "adapter")
    return model.eval()


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [[HEAD], [EMBEDDING], [HEAD, EMBEDDING]])
def test_it_is_loaded_and_merged_where_the_weight_is_the_bases(tmp_path: Path, targets: list[str], tied: bool) -> None:
    model = adapter_of_peft(tmp_path, *targets, tied=tied)
    files = read_adapter(tmp_path / "adapter")
    assert len(files.base_copies) == len(targets), "peft saves them"
    assert files.saved == frozenset()
    assert len(files.ranks) == 3 + len(targets)
    assert torch.equal(
        logits(load_adapters(tiny_loaded(tmp_path / "base"), {"default": tmp_path / "adapter"}).model), logits(model)
    )
    merged = AutoModelForCausalLM.from_pretrained(written(prepared(str(tmp_path / "adapter")), tmp_path / "out"))
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)
    opened = open_adapter(tmp_path / "adapter")
    assert (opened.whole, opened.unread) == ({}, ())


def test_a_copy_in_16_bits_is_the_bases_too(tmp_path: Path) -> None:
    adapter_of_peft(tmp_path, HEAD)
    rewrite(tmp_path, lambda weight: weight.to(torch.bfloat16))
    assert load_adapters(tiny_loaded(tmp_path / "base"), {"default": tmp_path / "adapter"}).notes
    assert prepared(str(tmp_path / "adapter"))


def rewrite(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "adapter" / ADAPTER_WEIGHTS)
    changed = {key: change(tensor) if ".base_layer." in key else tensor for key, tensor in tensors.items()}
    save_file(changed, folder / "adapter" / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("target", [HEAD, EMBEDDING])
def test_a_weight_of_another_base_is_refused_for_what_it_is(tmp_path: Path, target: str) -> None:
    adapter_of_peft(tmp_path, target)
    rewrite(tmp_path, lambda weight: weight + 0.01)
    uses: list[Callable[[], object]] = [
        lambda: load_adapters(tiny_loaded(tmp_path / "base"), {"default": tmp_path / "adapter"}),
        lambda: prepared(str(tmp_path / "adapter")),
    ]
    for use in uses:
        with pytest.raises(AdapterError, match=rf"brings the .*{target}\.weight of another base") as refused:
            use()
        (problem,) = refused.value.problems
        assert "`base_model=MODEL`" in (problem.remedy or "")


def test_a_vocabulary_that_grew_is_refused_for_what_it_is(tmp_path: Path) -> None:
    adapter_of_peft(tmp_path, HEAD, EMBEDDING, grown=8)
    with pytest.raises(AdapterError) as refused:
        load_adapters(tiny_loaded(tmp_path / "base"), {"default": tmp_path / "adapter"})
    assert [problem.message for problem in refused.value.problems] == [
        "it brings the lm_head.weight of another base: it is [328, 32] there, and [320, 32] here",
        "it brings the model.embed_tokens.weight of another base: it is [328, 32] there, and [320, 32] here",
    ]
    with pytest.raises(AdapterError, match=r"\[328, 32\]"):
        prepared(str(tmp_path / "adapter"))
