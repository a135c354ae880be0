"""Norms with a backward of their own against the modules' own, values and gradients."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from transformers.models.xlstm.modeling_xlstm import xLSTMMultiHeadLayerNorm

from loraft.kernels import rms_norm
from loraft.kernels.rms_norm import Form, cpu_norm, cuda_norm, patch_rms_norm, plain_norm
from tests.tiny import TELLING, TINY_MODEL_TYPES, mostly_slow, tiny_model

LLAMAS = ("llama", "mistral", "ministral3", "qwen2", "qwen3", "phi3", "granite", "smollm3", "exaone4", "seed_oss")


def loss_and_gradient(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    embeddings = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits.float()
    logits.square().mean().backward()
    assert embeddings.grad is not None
    return logits.detach(), embeddings.grad.float()


@pytest.fixture(params=[cpu_norm, cuda_norm], ids=["cpu-form", "cuda-form"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Each form, on the CPU."""
    chosen: Form = request.param
    monkeypatch.setattr(rms_norm, "norm_for", lambda _: chosen)
    return chosen


@pytest.mark.slow_after(6)
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("model_type", "dtype"),
    mostly_slow(
        product(TINY_MODEL_TYPES, [torch.float32, torch.bfloat16]),
        *((model_type, torch.float32) for model_type in TELLING),
        *((model_type, torch.bfloat16) for model_type in ("llama", "gemma2")),
    ),
)
def test_every_family_computes_the_same(model_type: str, dtype: torch.dtype) -> None:
    plain = tiny_model(model_type).to(dtype).requires_grad_(False).train()
    ours = copy.deepcopy(plain)
    found = patch_rms_norm(ours)
    assert found > 0 or model_type not in LLAMAS
    results = []
    for model in (plain, ours):
        torch.manual_seed(2)  # for the base's own dropout
        results.append(loss_and_gradient(model, dtype))
    (expected, expected_gradient), (logits, gradient) = results
    assert torch.equal(logits, expected)
    # The last bits of float32 through three layers; in bfloat16 each layer rounds its gradient to 8 bits besides.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "cohere", "gpt2", "olmo"])
def test_another_formula_is_left_alone(model_type: str) -> None:
    model = tiny_model(model_type).to(torch.bfloat16).requires_grad_(False)
    classes = [type(module) for module in model.modules()]
    assert patch_rms_norm(model) == 0
    assert [type(module) for module in model.modules()] == classes


def test_a_norm_that_takes_other_shapes_is_left_alone() -> None:
    """What is no norm of hidden states cannot be given any."""
    norm = xLSTMMultiHeadLayerNorm(num_heads=2, head_dim=8).requires_grad_(False)
    assert patch_rms_norm(norm) == 0
    assert type(norm) is xLSTMMultiHeadLayerNorm


def test_a_trained_norm_and_evaluation_are_the_modules_own() -> None:
    model = tiny_model("llama").requires_grad_(False).train()
    model.model.norm.requires_grad_(True)
    assert patch_rms_norm(model) == 6
    norm, x = model.model.layers[0].input_layernorm, torch.randn(3, 32, requires_grad=True)
    assert type(norm(x).grad_fn).__name__ == "_RootMeanSquareNormBackward"
    assert type(norm.eval()(x).grad_fn).__name__ == "MulBackward0"
    assert type(norm.train().requires_grad_(True)(x).grad_fn).__name__ == "MulBackward0"
    assert repr(norm) == repr(tiny_model("llama").model.layers[0].input_layernorm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_forms_are_the_plain_formula(form: Form, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-2, 1.0, 10.0])[:, None, None]
    x = (sizes * torch.randn(3, 5, 64, generator=generator)).to(dtype).requires_grad_()
    weight, given = (torch.randn(shape, generator=generator).to(dtype) for shape in ((64,), (3, 5, 64)))
    ours, plain = form(x, weight, 1e-6), plain_norm(x, weight, 1e-6)
    assert ours.dtype == dtype
    # Bits of a sum in another order; a rounding of n besides where it falls on the other side.
    rounding = torch.finfo(dtype).eps
    assert (ours - plain).double().norm() <= rounding * plain.double().norm()
    (mine,), (theirs,) = (torch.autograd.grad((out * given).sum(), x) for out in (ours, plain))
    assert (mine - theirs).double().norm() <= 4 * rounding * theirs.double().norm()


def test_the_gradient_is_that_of_finite_differences(form: Form) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(8, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: form(given, weight, 1e-2), (x,))
