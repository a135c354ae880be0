"""The low-rank update as training computes it: base and update in one function, with a backward of its own.

This module knows peft's layers and gives plain LoRA another way through them while they train: the numbers are peft's,
x Wᵀ + scale · x Aᵀ Bᵀ, but the update is added to the base's output, and its gradient to the base's, in place, where
peft multiplies by the scale and adds in passes of their own, forward and backward. It is for training mode alone: in
evaluation mode, merged, disabled or saved, an adapter is peft's own.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["AdaptedLinear", "InPlaceUpdate", "update_in_place"]


def update_in_place(model: nn.Module, name: str) -> None:
    """Let every plain LoRA layer of `model` add its update in place; variants such as DoRA stay as they are.

    Layers over an ordinary linear module become `AdaptedLinear`; over any other module, 4-bit ones among them, the
    base computes its output and the update is added to it.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A and name not in module.lora_variant:
            module.lora_variant[name] = InPlaceUpdate()
            _give_own_function(module)


def _give_own_function(module: Any) -> None:
    if type(module) is Linear and type(module.base_layer) is nn.Linear:
        module.__class__ = AdaptedLinear


class AdaptedLinear(Linear):
    """peft's layer over an ordinary linear module, with one function for base and update while it trains."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        (name, *others), base = self.active_adapters or [None], self.base_layer
        plain = not (others or args or kwargs or self.disable_adapters or self.merged or base.weight.requires_grad)
        if not (self.training and plain and isinstance(self.lora_dropout[name], nn.Identity)):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        adapted: Tensor = _Adapted.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
        return adapted


class InPlaceUpdate(LoraVariant):
    """peft's hook: it is given the base's output and returns it with the update."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """`[..., in]` and the base's output `[..., out]` to the adapted output `[..., out]`."""
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scale = module.scaling[active_adapter]
        if not module.training:  # in peft's own words, so that what is evaluated is peft's to the bit
            plain: Tensor = result + b(a(x)) * scale
            return plain
        x = module.lora_dropout[active_adapter](x)
        updated: Tensor = _Update.apply(result, x, a.weight, b.weight, scale)  # type: ignore[no-untyped-call]
        return updated


class _Adapted(torch.autograd.Function):
    """x Wᵀ + bias + scale · x Aᵀ Bᵀ with W frozen, in W's dtype; gradients of A and B in theirs.

    With U = x Aᵀ and G the output's gradient: dB = scale · Gᵀ U, V = scale · G B, dA = Vᵀ x and dx = G W + V A.

    Source: Hu et al. 2021, LoRA, equation 3 (https://arxiv.org/abs/2106.09685).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows, a_cast, b_cast = (tensor.to(weight.dtype) for tensor in (x.reshape(-1, x.shape[-1]), a, b))
        u = rows @ a_cast.T
        ctx.save_for_backward(rows, weight, u, a_cast, b_cast)
        ctx.scale, ctx.shape, ctx.dtype, ctx.trained_dtype = scale, x.shape, x.dtype, a.dtype
        out = linear(rows, weight, bias).addmm_(u, b_cast.T, alpha=scale)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, u, a, b = ctx.saved_tensors
        gradient = grads[0].reshape(-1, grads[0].shape[-1])
        d_a, d_b, v = _trained_gradients(gradient, rows, u, b, ctx)
        if not ctx.needs_input_grad[0]:
            return None, None, None, d_a, d_b, None
        d_x = (gradient @ weight).addmm_(v, a).view(ctx.shape).to(ctx.dtype)
        return d_x, None, None, d_a, d_b, None


class _Update(torch.autograd.Function):
    """result + scale · x Aᵀ Bᵀ, in the result's dtype; gradients as in `_Adapted`, that of the result passed on."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        dtype = result.dtype
        rows, a_cast, b_cast = x.reshape(-1, x.shape[-1]).to(dtype), a.to(dtype), b.to(dtype)
        u = rows @ a_cast.T
        ctx.save_for_backward(rows, u, a_cast, b_cast)
        ctx.scale, ctx.shape, ctx.dtype, ctx.trained_dtype = scale, x.shape, x.dtype, a.dtype
        if result._is_view():  # GPT-2's Conv1D gives a view, and autograd would copy what is changed in place in one
            return torch.addmm(result.reshape(-1, result.shape[-1]), u, b_cast.T, alpha=scale).view_as(result)
        ctx.mark_dirty(result)
        result.view(-1, result.shape[-1]).addmm_(u, b_cast.T, alpha=scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, u, a, b = ctx.saved_tensors
        gradient = grads[0].reshape(-1, grads[0].shape[-1])
        d_a, d_b, v = _trained_gradients(gradient, rows, u, b, ctx)
        d_x = (v @ a).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return grads[0], d_x, d_a, d_b, None


def _trained_gradients(gradient: Tensor, rows: Tensor, u: Tensor, b: Tensor, ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of A `[r, in]` and B `[out, r]`, and V `[tokens, r]`, from G `[tokens, out]`, x and U."""
    v = (gradient @ b).mul_(ctx.scale)
    return (v.T @ rows).to(ctx.trained_dtype), (gradient.T @ u).to(ctx.trained_dtype).mul_(ctx.scale), v
