"""Root-mean-square norms as training computes them, where their weight is frozen.

Modules that compute the formula of Llama's norm are found by what they hold, and by giving them numbers. One that
answers otherwise, in a single bit, is left alone. In evaluation a module computes as its own class does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

PROBED_SCALES = (1e-3, 1.0, 1e3)
"""The sizes of the numbers that a module is tried on: with small ones its epsilon shows."""

FORMULAS = ((0.0, True), (1.0, False), (0.0, False))
"""The norms of Llama, Gemma and OLMo 2: `offset` and `rounds` of `plain_norm`."""
Form = Callable[[Tensor, Tensor, float], Tensor]
"""From x `[..., hidden]`, the weight `[hidden]` and epsilon to `[..., hidden]`."""


def plain_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0, *, rounds: bool = True) -> Tensor:
    """The norm n · (weight + offset), n = x / √(mean(x²) + ε) in float32; n is rounded to x's dtype where `rounds`.

    Else the product is. Where nothing else is said it is Llama's norm.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    n = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    scaled = n.to(x.dtype) * (weight + offset) if rounds else n * (weight.to(n.dtype) + offset)
    return scaled.to(x.dtype)


def cpu_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Llama's in place, with a backward of its own.

    That takes a third fewer passes over the hidden states, and keeps the 16-bit input, not two tensors of float32.
    """
    out: Tensor = _RootMeanSquareNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return out


def cuda_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The same by torch's kernel, one pass in either direction; the weight is outside, for n is rounded before it.

    It computes in float32 whatever it is given; autocast would keep a copy in float32 for the backward pass besides.
    """
    on = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if on else nullcontext():
        return rms_norm(x, x.shape[-1:], eps=epsilon) * weight


def norm_for(device: torch.device) -> Form:
    """The form for a device."""
    return cpu_norm if device.type == "cpu" else cuda_norm


def patch_rms_norm(model: nn.Module) -> int:
    """Let every frozen norm of `model` that computes Llama's formula train by it; the number of those found."""
    found = [module for module in model.modules() if formula_of(module) == FORMULAS[0]]
    for module in found:
        module.__class__ = type(type(module).__name__, (_FrozenNorm, type(module)), {})
    return len(found)


class _FrozenNorm(nn.Module):
    """Set before the class of a norm: in training the form for the device, else what that class does."""

    weight: nn.Parameter

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        if self.training and hidden_states.dtype == self.weight.dtype and not self.weight.requires_grad:
            return norm_for(hidden_states.device)(hidden_states, self.weight, epsilon_of(self))
        plain: Tensor = super().forward(hidden_states)
        return plain


def epsilon_of(module: nn.Module) -> Any:
    """A norm's epsilon, by either name that transformers has for it."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def formula_of(module: nn.Module) -> tuple[float, bool] | None:
    """The formula whose numbers a frozen norm gives, to the bit; None where it is none of these."""
    weight, epsilon = getattr(module, "weight", None), epsilon_of(module)
    if not isinstance(weight, nn.Parameter) or not isinstance(epsilon, float) or len(list(module.parameters())) > 1:
        return None
    if weight.dim() != 1 or weight.requires_grad or len(inspect.signature(module.forward).parameters) != 1:
        return None  # a norm that takes a gate besides computes another formula
    numbers = torch.randn(len(PROBED_SCALES), len(weight), generator=torch.Generator().manual_seed(0))
    probe = (numbers * torch.tensor(PROBED_SCALES)[:, None]).to(weight)
    with torch.no_grad():
        try:
            given = module(probe)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return None  # it takes other shapes: xLSTM's takes each head by itself
        for offset, rounds in FORMULAS:
            if torch.equal(given, plain_norm(probe, weight, epsilon, offset, rounds=rounds)):
                return offset, rounds
    return None


class _RootMeanSquareNorm(torch.autograd.Function):
    """With G the output's gradient and g = w · G, dx = (g - n · mean(g · n)) / √(mean(x²) + ε); w is frozen.

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, equation 4
    (https://arxiv.org/abs/1910.07467), differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        inverse = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return wide.mul_(inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        g = (grads[0] * weight).to(inverse.dtype)
        n = x.to(inverse.dtype, copy=True).mul_(inverse)
        along = torch.linalg.vecdot(g, n).unsqueeze_(-1).div_(n.shape[-1])
        return g.addcmul_(n, along, value=-1).mul_(inverse).to(x.dtype), None, None
