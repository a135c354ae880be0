"""The low-rank update as training computes it: one pass over the output, and a backward of its own.

This module knows peft's hook for variants of LoRA and uses it for plain LoRA: the numbers are peft's, result +
scale · x Aᵀ Bᵀ, but the product is added to the base's output in place, where peft multiplies by the scale and adds in
two more passes over it, forward and backward. It is for training mode alone: in evaluation mode, merged or saved, an
adapter is peft's own.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

__all__ = ["InPlaceUpdate", "update_in_place"]


def update_in_place(model: nn.Module, name: str) -> None:
    """Let every plain LoRA layer of `model` add its update in place; variants such as DoRA stay as they are."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A and name not in module.lora_variant:
            module.lora_variant[name] = InPlaceUpdate()


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


class _Update(torch.autograd.Function):
    """result + scale · x Aᵀ Bᵀ, in the result's dtype; gradients of A and B in theirs.

    With U = x Aᵀ and G the output's gradient: dB = scale · Gᵀ U, V = scale · G B, dA = Vᵀ x and dx = V A.

    Source: Hu et al. 2021, LoRA, equation 3 (https://arxiv.org/abs/2106.09685).
    """

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
        v = (gradient @ b).mul_(ctx.scale)
        d_b = (gradient.T @ u).to(ctx.trained_dtype).mul_(ctx.scale)
        d_a = (v.T @ rows).to(ctx.trained_dtype)
        d_x = (v @ a).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return grads[0], d_x, d_a, d_b, None
