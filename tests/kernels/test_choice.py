"""On CUDA the forms that are tuned for the CPU are never taken.

Tensors without data stand for those of a GPU where there is none: they are on another device than the CPU too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loraft.kernels import cross_entropy, decoding_products, packed_attention, rms_norm
from loraft.kernels.low_rank import lora_linear
from loraft.kernels.packed_attention import ROWS
from loraft.models.registry import FAMILIES
from tests.tiny import tiny_model

DEVICES = ["meta", pytest.param("cuda", marks=pytest.mark.gpu)]


class CpuFormError(AssertionError):
    """A form for the CPU was taken."""


@pytest.fixture(autouse=True)
def _no_cpu_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CpuFormError

    monkeypatch.setattr(rms_norm, "cpu_norm", refuse)
    monkeypatch.setattr(decoding_products, "fastest_form", refuse)
    monkeypatch.setattr(packed_attention._RowProducts, "apply", refuse)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no tensors without data


def train_once(model_type: str, device: str) -> None:
    """A forward and a backward pass of a model as training patches it."""
    base = tiny_model(model_type).bfloat16()
    base.set_attn_implementation(ROWS)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=model_type == "gpt2"))
    lora_linear.patch_lora_linears(model, "default", FAMILIES[model_type].same_input)
    rms_norm.patch_rms_norm(model)
    model = model.train().to(device)
    embeddings = torch.zeros(1, 7, 32, dtype=torch.bfloat16, device=device, requires_grad=True)
    positions = torch.arange(7, device=device)[None]
    out = model(inputs_embeds=embeddings, position_ids=positions, use_cache=False, row_lengths=[3, 4])
    out.logits.float().square().mean().backward()
    assert embeddings.grad is not None


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("device", DEVICES)
def test_training_takes_no_form_of_the_cpu(device: str, model_type: str) -> None:
    train_once(model_type, device)
    if model_type == "llama":  # whose norm has a form for a CPU
        with pytest.raises(CpuFormError):
            train_once(model_type, "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_products_of_one_token_are_the_usual_ones(device: str) -> None:
    module = nn.Linear(96, 50, bias=False, dtype=torch.bfloat16, device=device)
    with torch.no_grad(), decoding_products.patch_decode_linears(module, torch.bfloat16):
        assert module(torch.zeros(1, 96, dtype=torch.bfloat16, device=device)).shape == (1, 50)
    wide = nn.Linear(96, 50, bias=False, device=device)
    with torch.no_grad(), decoding_products.patch_decode_linears(wide, torch.bfloat16):
        assert wide(torch.zeros(1, 96, device=device)).dtype == torch.bfloat16
    on_cpu = nn.Linear(96, 50, bias=False, dtype=torch.bfloat16)
    with pytest.raises(CpuFormError), decoding_products.patch_decode_linears(on_cpu, torch.bfloat16):
        pass


@pytest.mark.parametrize(
    ("device", "blocks"), [("cpu", 3), ("meta", 1), pytest.param("cuda", 1, marks=pytest.mark.gpu)]
)
def test_rows_of_logits_go_through_a_cpus_cache_alone(
    device: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = cross_entropy._losses_to_gradients, []

    def counted(logits: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append(len(logits))
        return plain(logits, *rest, **options)

    monkeypatch.setattr(cross_entropy, "_losses_to_gradients", counted)
    hidden, weight = torch.zeros(40, 8, device=device), torch.zeros(50, 8, device=device)
    head = cross_entropy.HeadWeights(weight, None, 1.0, None)
    cross_entropy.frozen_head_loss(hidden, torch.zeros(40, dtype=torch.long, device=device), head, 64)
    assert len(calls) == blocks
