"""The plain and the fused form of each operation; the plain norm is that of `rms_norm`.

The fused ones take what lies on CUDA, in 16 or 32 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from loraft.kernels.fused import triton_ops  # noqa: F401 - defines the operations

FUSED = {torch.float32, torch.bfloat16, torch.float16}
"""The dtypes of the fused forms."""


def fused_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, *, rounds: bool) -> Tensor:
    """`plain_norm` in one kernel, and its gradient by x in another; the weight is frozen."""
    out: Tensor = _Norm.apply(x, weight, epsilon, offset, rounds)  # type: ignore[no-untyped-call]
    return out


class _Norm(torch.autograd.Function):
    """`[..., columns]`; kept are the input and a number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float, rounds: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out, inverse = torch.ops.loraft.norm(rows, weight, epsilon, offset, rounds)
        ctx.save_for_backward(rows, weight, inverse)
        ctx.shape, ctx.formula = x.shape, (offset, rounds)
        shaped: Tensor = out.view(x.shape)
        return shaped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, inverse = ctx.saved_tensors
        given = grads[0].reshape(rows.shape).contiguous()
        d_x = torch.ops.loraft.norm_backward(given, rows, weight, inverse, *ctx.formula)
        return d_x.view(ctx.shape), None, None, None, None


def plain_gated(gate: Tensor, up: Tensor, *, by_gelu: bool) -> Tensor:
    """act(gate) · up, where act is SiLU, or the GELU that is written with tanh."""
    return (gelu(gate, approximate="tanh") if by_gelu else silu(gate)) * up


def fused_gated(gate: Tensor, up: Tensor, *, by_gelu: bool) -> Tensor:
    """The same in one kernel, and both gradients in another, for which act(gate) is not kept."""
    out: Tensor = _Gated.apply(gate, up, by_gelu)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, by_gelu: bool) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.by_gelu = by_gelu
        out: Tensor = torch.ops.loraft.gated(gate, up, by_gelu)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.ops.loraft.gated_backward(grads[0].contiguous(), gate, up, ctx.by_gelu)
        return d_gate, d_up, None


def plain_rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys `[batch, heads, time, size]` turned by cos and sin `[1 or batch, time, size]`.

    Of a head's halves (a, b) it makes (a, b) · cos + (-b, a) · sin.
    Source: Su et al. 2021, RoFormer (https://arxiv.org/abs/2104.09864), with halves in place of pairs, as Llama has it.
    """
    cos, sin = cos[:, None], sin[:, None]

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return (x * cos) + (torch.cat((-second, first), -1) * sin)

    return turned(query), turned(key)


def fused_rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one kernel for both, and their gradients in another."""
    turned: tuple[Tensor, Tensor] = _Rotated.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.dtype = query.dtype
        dtype = torch.promote_types(query.dtype, cos.dtype)
        turned: tuple[Tensor, Tensor] = torch.ops.loraft.rotate(*_by_head(query, key), cos, sin, dtype, False)
        return turned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back = torch.ops.loraft.rotate(*_by_head(*grads), cos, sin, grads[0].dtype, True)
        return (*(gradient.to(ctx.dtype) for gradient in back), None, None)


def _by_head(*tensors: Tensor) -> list[Tensor]:
    """The tensors with the numbers of a head side by side."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
