"""Which modules train by fused forms, with plain ones in their place: numbers and gradients stay the model's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraft.kernels.fused import forms, fuse
from loraft.kernels.fused.fuse import fuse_gated, fuse_norms, fuse_rotary
from loraft.kernels.rms_norm import FORMULAS, patch_rms_norm, plain_norm
from tests.tiny import TINY_MODEL_TYPES, mostly_slow, tiny_model

NORMS = {
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "olmo2",
    "olmo3", "smollm3", "glm4", "exaone4", "seed_oss", "arcee", "mixtral",
}  # fmt: skip
GATED = {
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "cohere",
    "cohere2", "olmo", "olmo2", "olmo3", "smollm3", "stablelm", "exaone4",
}  # fmt: skip
ROTARY = {
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "granite", "smollm3",
    "starcoder2", "stablelm", "exaone4", "seed_oss", "arcee", "mixtral",
}  # fmt: skip


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The plain forms in the place of the fused ones, and on the CPU; the names of those that were taken."""
    found: set[str] = set()

    def told(name: str, plain: Any) -> Any:
        def form(*args: Any, **kwargs: Any) -> Any:
            found.add(name)
            return plain(*args, **kwargs)

        return form

    for name, plain in (("norm", plain_norm), ("gated", forms.plain_gated), ("rotated", forms.plain_rotated)):
        monkeypatch.setattr(fuse, f"fused_{name}", told(name, plain))
    monkeypatch.setattr(fuse, "has_form", lambda _: True)
    return found


def fused(model: nn.Module) -> tuple[bool, bool, bool]:
    """A model that trains by all forms that fit it, and which those are."""
    patch_rms_norm(model)
    return fuse_norms(model) > 0, fuse_gated(model) > 0, fuse_rotary(model) > 0


def logits_and_gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    embeddings = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    torch.manual_seed(2)  # for the base's own dropout
    logits = model(inputs_embeds=embeddings, use_cache=False).logits.float()
    logits.square().mean().backward()
    assert embeddings.grad is not None
    return logits.detach(), embeddings.grad.float()


@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, "llama", "gemma2", "olmo2", "gpt2"))
def test_what_is_found_computes_what_it_did(model_type: str, taken: set[str]) -> None:
    plain = tiny_model(model_type).bfloat16().requires_grad_(False).train()
    ours = copy.deepcopy(plain)
    assert fused(ours) == (model_type in NORMS, model_type in GATED, model_type in ROTARY)
    (expected, expected_gradient), (logits, gradient) = (logits_and_gradient(model) for model in (plain, ours))
    of = zip(("norm", "gated", "rotated"), (NORMS, GATED, ROTARY), strict=True)
    assert taken == {name for name, families in of if model_type in families}
    assert torch.equal(logits, expected)
    # On a CPU the module's own norm has another backward pass, in bfloat16.
    assert (gradient - expected_gradient).norm() <= 2e-2 * expected_gradient.norm()


def test_evaluation_and_a_cpu_take_the_modules_own(taken: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_model("llama").requires_grad_(False).eval()
    ours = copy.deepcopy(plain)
    fused(ours)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert taken == set()
    monkeypatch.undo()
    ours.train()
    logits_and_gradient(ours.bfloat16())
    assert taken == set()
    assert repr(ours) == repr(plain.train().bfloat16())


def test_trained_norms_and_another_activation_are_left_alone() -> None:
    model = tiny_model("llama", hidden_act="relu").requires_grad_(False)
    model.model.norm.requires_grad_(True)
    assert fuse_norms(model) == 6
    assert fuse_gated(model) == 0
    assert fuse_gated(tiny_model("gemma", hidden_act="gelu_python_tanh")) == 0


@pytest.mark.parametrize(("offset", "rounds"), FORMULAS)
def test_the_plain_norms_are_the_formula(offset: float, rounds: bool) -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([0.5, 2.0])
    out = plain_norm(x, weight, 0.0, offset, rounds=rounds)
    expected = torch.tensor([[3.0, 4.0]]) / 12.5**0.5 * (weight + offset)
    torch.testing.assert_close(out, expected)


def test_plain_rotation_turns_the_halves_of_a_head() -> None:
    query, key = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    cos, sin = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    turned = forms.plain_rotated(query, key, cos, sin)
    assert [tensor.flatten().tolist() for tensor in turned] == [[-2.0, 1.0], [-1.0, 0.0]]
