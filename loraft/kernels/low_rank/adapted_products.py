"""LoRA's layers as training computes them: those that read one input together, their weights in 4 or 8 bits perhaps.

Base and update are one function with a backward of its own: a layer is some kernels fewer than by autograd, nothing is
copied but to add to it, and of a weight in few bits nothing dequantized is kept. Each use of it dequantizes it once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraft.kernels.linear_weights import unpacked


def adapted_products(
    x: Tensor,
    bases: Sequence[nn.Module],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    dtype: torch.dtype,
    dropped: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The outputs x Wᵀ + bias + scale · x Aᵀ Bᵀ of one or more frozen bases that read the same x.

    Each product is added to its update: in 16 bits they are rounded once, together. An update that is added to outputs
    as they are rounded is lost where it is below half of their last place, and early in training most of it is.

    Args:
        x: `[..., in]`.
        bases: Linear modules.
        factors: A `[r, in]` and B `[out, r]` of each base in turn.
        scales: The factor on each update.
        dtype: That of the products and of what comes back.
        dropped: What the updates read in place of x, where dropout is drawn for them.

    Returns:
        `[..., out]` for each base.
    """
    outputs: tuple[Tensor, ...] = _Adapted.apply(x, dropped, bases, scales, dtype, *factors)  # type: ignore[no-untyped-call]
    # Here, since autograd lets no module change in place what is a view inside of the function.
    return tuple(output.view(*x.shape[:-1], -1) for output in outputs)


class _Adapted(torch.autograd.Function):
    """With U = x Aᵀ and G the output's gradient: dB = scale · Gᵀ U, V = scale · G B, dA = Vᵀ x and dx = G W + V A.

    The A of all layers are one matrix, and so are their U and V; dx is summed over the layers in place.

    Source: Hu et al. 2021, LoRA, equation 3 (https://arxiv.org/abs/2106.09685).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        bases: Sequence[Any],
        scales: Sequence[float],
        dtype: torch.dtype,
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        all_a, all_b = factors[0::2], factors[1::2]
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        read = rows if dropped is None else dropped.reshape(rows.shape).to(dtype)
        a = (torch.cat(all_a) if len(all_a) > 1 else all_a[0]).to(dtype)
        b_cast = [b.to(dtype) for b in all_b]
        u = read @ a.T
        ctx.save_for_backward(read, u, a, *b_cast)
        ctx.bases, ctx.scales, ctx.ranks = bases, scales, [len(one) for one in all_a]
        ctx.drops = dropped is not None
        ctx.shape, ctx.dtype, ctx.trained_dtype = x.shape, x.dtype, all_a[0].dtype
        parts = zip(bases, torch.split(u, ctx.ranks, 1), b_cast, scales, strict=True)
        updates = ((base, rows.new_empty(len(u), len(b)).addmm_(u, b.T, beta=0, alpha=s)) for base, u, b, s in parts)
        outputs = [(base, update.addmm_(rows, unpacked(base).to(dtype).T)) for base, update in updates]
        return tuple(out if base.bias is None else out.add_(base.bias) for base, out in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        read, all_u, a, *all_b = ctx.saved_tensors
        gradients = [gradient.reshape(-1, gradient.shape[-1]) for gradient in grads]
        parts = list(zip(gradients, all_b, torch.split(all_u, ctx.ranks, 1), ctx.scales, strict=True))
        each_v = [(gradient @ b).mul_(scale) for gradient, b, _, scale in parts]
        v = torch.cat(each_v, 1) if len(each_v) > 1 else each_v[0]
        d_a = torch.split((v.T @ read).to(ctx.trained_dtype), ctx.ranks)
        d_b = [(gradient.T @ u).to(ctx.trained_dtype).mul_(scale) for gradient, _, u, scale in parts]
        d_x = d_dropped = None
        if ctx.needs_input_grad[0]:
            d_x = v @ a
            if ctx.drops:
                d_dropped, d_x = d_x.view(ctx.shape).to(ctx.dtype), torch.zeros_like(d_x)
            for gradient, base in zip(gradients, ctx.bases, strict=True):
                d_x.addmm_(gradient, unpacked(base).to(read.dtype))
            d_x = d_x.view(ctx.shape).to(ctx.dtype)
        of_layers = zip(d_a, d_b, strict=True)
        return d_x, d_dropped, None, None, None, *itertools.chain.from_iterable(of_layers)
