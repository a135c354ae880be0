"""Experts in 4 bits: bitsandbytes' numbers, gradients to the bit, and nothing dequantized that is kept."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes import functional as bnb
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from loraft.kernels.packed_experts import Packed, PackedExperts, hold, is_packable, let_go, pack
from loraft.models.model_structure import stacks_experts
from tests.zoo.models import build

IDS = torch.tensor([[5, 9, 200, 31, 7, 77, 140, 12], [8, 31, 33, 6, 2, 88, 150, 1]])


def tensors_of_experts(model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    for name, weight in list(model.named_parameters()):
        if stacks_experts(name, weight.shape):
            module, _, leaf = name.rpartition(".")
            yield module, leaf, weight.data


def pair(model_type: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model whose experts are in 4 bits, and one with the numbers that these stand for."""
    packed = build(model_type, "causal").requires_grad_(False)
    plain = copy.deepcopy(packed)
    for module, leaf, weight in tensors_of_experts(packed):
        held = pack(weight, "nf4", double_quant=True)
        hold(packed.get_submodule(module), leaf, held)
        plain.get_submodule(module).get_parameter(leaf).data = held.value()
    return packed, plain


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_what_is_packed_is_what_bitsandbytes_makes_of_all_at_once(kind: str, double_quant: bool) -> None:
    """All of it and a part; an expert's rows are half a block here, which bitsandbytes' CPU kernel gets wrong."""
    weight = torch.randn(5, 6, 32, generator=torch.Generator().manual_seed(0))
    packed = pack(weight, kind, double_quant=double_quant)
    codes, state = bnb.quantize_4bit(weight.flatten(), blocksize=64, quant_type=kind, compress_statistics=double_quant)
    assert torch.equal(packed.value(), bnb.dequantize_4bit(codes, state).view(weight.shape))
    assert torch.equal(packed.value(slice(1, 3)), packed.value()[1:3])
    assert (packed.value() - weight).abs().max() < 0.6 < weight.abs().max()


def test_experts_that_would_share_a_block_are_not_packed() -> None:
    assert is_packable((4, 6, 32))
    assert not is_packable((4, 3, 33))
    assert not is_packable((128, 64))


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "llama4_text", "jamba"])
@pytest.mark.parametrize("how", ["eager", "grouped_mm", "batched_mm"])
def test_a_model_computes_what_one_with_the_dequantized_weights_does(model_type: str, how: str) -> None:
    """Its logits and its gradient to the bit, however the products of experts are taken."""
    found = []
    for model in pair(model_type):
        if model._can_set_experts_implementation():
            model.set_experts_implementation(how)
        embeddings = model.get_input_embeddings()(IDS).requires_grad_(True)
        logits = model.train()(inputs_embeds=embeddings).logits
        logits.square().sum().backward()
        found.append((logits.detach(), embeddings.grad))
    for packed, plain in zip(*found, strict=True):
        assert torch.equal(packed, plain)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("recomputed", [False, True])
def test_nothing_that_was_dequantized_is_kept_unless_the_layer_is_recomputed(
    recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = pair("qwen3_moe")
    made: list[StorageWeakRef] = []
    value = Packed.value

    def noted(self: Packed, *rest: Any) -> Tensor:
        result = value(self, *rest)
        made.append(StorageWeakRef(result.untyped_storage()))
        return result

    monkeypatch.setattr(Packed, "value", noted)
    for module in model.modules():
        if isinstance(module, PackedExperts):
            module.recomputed = recomputed
    logits = model(inputs_embeds=model.get_input_embeddings()(IDS).requires_grad_(True)).logits
    gc.collect()
    assert len(made) == 4
    assert all(each.expired() != recomputed for each in made)
    logits.sum().backward()


def test_a_parameter_keeps_its_place_and_takes_no_memory() -> None:
    """It holds NaN: what reads it past the module is told so by what it gives."""
    model, plain = pair("gpt_oss")
    for (name, weight), (other, of_plain) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert (name, weight.shape, weight.dtype) == (other, of_plain.shape, of_plain.dtype)
        if stacks_experts(name, weight.shape):
            assert weight.untyped_storage().nbytes() == 4
            assert weight.isnan().all()
    for module in list(model.modules()):
        if isinstance(module, PackedExperts):
            let_go(module, torch.float32)
    assert not any(isinstance(module, PackedExperts) for module in model.modules())
    assert all(torch.equal(weight, plain.get_parameter(name)) for name, weight in model.named_parameters())
