"""LoRA's layers as training computes them: those that read one input together, their weights in 4 or 8 bits perhaps.

Base and update are one function with a backward of its own: a layer is some kernels fewer than by autograd, nothing is
copied but to add to it, and of a weight in few bits nothing dequantized is kept. Each use of it dequantizes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraft.kernels.linear_weights import unpacked


@dataclass(frozen=True)
class Adapted:
    """A linear module whose weight is frozen, and its low-rank update.

    Attributes:
        base: In 4 or 8 bits perhaps; a bias may be trained.
        a: `[r, in]`.
        b: `[out, r]`.
        scale: The factor on the update.
        factors: `[out]` in float32: what DoRA multiplies the outputs by, before the bias.
    """

    base: nn.Module
    a: Tensor
    b: Tensor
    scale: float
    factors: Tensor | None = None


def adapted_products(
    x: Tensor, layers: Sequence[Adapted], dtype: torch.dtype, dropped: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The outputs x Wᵀ + scale · x Aᵀ Bᵀ + bias of one or more layers that read the same x.

    The product of a base is added to its update: in 16 bits their sum is rounded once. An update that is added to what
    is rounded already is lost where it is below half of the last place, and early in training most of it is.

    DoRA multiplies that sum by its factors f; with dropout it adds f - 1 times the sum of what is left of x, as peft.
    Without it an f within 1/512 of 1 changes nothing in bfloat16: what is multiplied is rounded already.

    Args:
        x: `[..., in]`.
        layers: What they are computed by.
        dtype: That of the products and of what comes back.
        dropped: What the updates read in place of x, where dropout is drawn for them.

    Returns:
        `[..., out]` for each layer.
    """
    given = [tensor for layer in layers for tensor in (layer.a, layer.b, layer.base.bias, layer.factors)]
    outputs: tuple[Tensor, ...] = _Products.apply(x, dropped, layers, dtype, *given)  # type: ignore[no-untyped-call]
    # Here, since autograd lets no module change in place what is a view inside of the function.
    return tuple(output.view(*x.shape[:-1], output.shape[-1]) for output in outputs)


class _Products(torch.autograd.Function):
    """With U = x Aᵀ and G the output's gradient: dB = scale · Gᵀ U, V = scale · G B, dA = Vᵀ x and dx = G W + V A.

    The A of all layers are one matrix, and so are their U and V; dx is summed over the layers in place. Where DoRA's
    factors f multiply a sum z, all that is of G is of f · G there, and df = Σ G · z.

    Source: Hu et al. 2021, LoRA, equation 3 (https://arxiv.org/abs/2106.09685); Liu et al. 2024, DoRA, equation 5
    (https://arxiv.org/abs/2402.09353).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, layers: Sequence[Adapted], dtype: torch.dtype, *_: Tensor | None
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        read = rows if dropped is None else dropped.reshape(rows.shape).to(dtype)
        all_a = [layer.a for layer in layers]
        a = (torch.cat(all_a) if len(all_a) > 1 else all_a[0]).to(dtype)
        all_b = [layer.b.to(dtype) for layer in layers]
        u = read @ a.T
        ctx.layers, ctx.ranks, ctx.drops = layers, [len(one) for one in all_a], dropped is not None
        ctx.shape, ctx.dtype, ctx.trained_dtype = x.shape, x.dtype, all_a[0].dtype
        parts = zip(layers, torch.split(u, ctx.ranks, 1), all_b, strict=True)
        outputs, sums = zip(*(_output(*part, rows, read) for part in parts), strict=True)
        ctx.save_for_backward(read, u, a, *all_b, *sums, *(layer.factors for layer in layers))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        read, all_u, a, *others = ctx.saved_tensors
        all_b, sums, factors = (others[start : start + len(grads)] for start in range(0, len(others), len(grads)))
        gradients = [gradient.reshape(-1, gradient.shape[-1]) for gradient in grads]
        all_b = [b if f is None else _times(b.T, f).T for b, f in zip(all_b, factors, strict=True)]
        scales = [layer.scale for layer in ctx.layers]
        parts = list(zip(gradients, all_b, torch.split(all_u, ctx.ranks, 1), scales, strict=True))
        each_v = [(gradient @ b).mul_(scale) for gradient, b, _, scale in parts]
        v = torch.cat(each_v, 1) if len(each_v) > 1 else each_v[0]
        d_a = torch.split((v.T @ read).to(ctx.trained_dtype), ctx.ranks)
        d_b = [(gradient.T @ u).to(ctx.trained_dtype).mul_(scale) for gradient, _, u, scale in parts]
        d_b = [each if f is None else each.mul_(f[:, None]) for each, f in zip(d_b, factors, strict=True)]
        d_factors = [
            None if z is None else (gradient * z).sum(0, dtype=torch.float32)
            for gradient, z in zip(gradients, sums, strict=True)
        ]
        d_bias = [
            gradient.sum(0, dtype=layer.base.bias.dtype) if needed else None
            for gradient, layer, needed in zip(gradients, ctx.layers, ctx.needs_input_grad[6::4], strict=True)
        ]
        d_x, d_dropped = _d_inputs(ctx, gradients, v @ a, factors) if ctx.needs_input_grad[0] else (None, None)
        given = (gradient for of_layer in zip(d_a, d_b, d_bias, d_factors, strict=True) for gradient in of_layer)
        return d_x, d_dropped, None, None, *given


def _d_inputs(
    ctx: Any, gradients: Sequence[Tensor], d_read: Tensor, factors: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of what dropout left of it, where it was drawn; `d_read` is V A, and is changed."""
    d_x = torch.zeros_like(d_read) if ctx.drops else d_read
    for gradient, layer, f in zip(gradients, ctx.layers, factors, strict=True):
        weight = unpacked(layer.base).to(d_read.dtype)
        d_x.addmm_(gradient if f is None or ctx.drops else _times(gradient, f), weight)
        if f is not None and ctx.drops:
            d_read.addmm_(_times(gradient, f - 1), weight)
    d_dropped = d_read.view(ctx.shape).to(ctx.dtype) if ctx.drops else None
    return d_x.view(ctx.shape).to(ctx.dtype), d_dropped


def _output(layer: Adapted, u: Tensor, b: Tensor, rows: Tensor, read: Tensor) -> tuple[Tensor, Tensor | None]:
    """The update, to which the base's product is added, and a bias to both; and what DoRA's factors multiplied."""
    base: Any = layer.base
    weight, f, z = unpacked(base).to(rows.dtype).T, layer.factors, None
    output = rows.new_empty(len(rows), len(b)).addmm_(u, b.T, beta=0, alpha=layer.scale)
    if f is None:
        output.addmm_(rows, weight)
    elif read is rows:
        z = output.addmm_(rows, weight)
        output = _times(z, f)
    else:
        z = output.addmm(read, weight)
        output.add_(_times(z, f - 1)).addmm_(rows, weight)
    return output if base.bias is None else output.add_(base.bias), z


def _times(rows: Tensor, factors: Tensor) -> Tensor:
    """`[rows, out]` times `[out]` in float32, rounded once."""
    return torch.mul(rows, factors, out=torch.empty_like(rows))
