"""The kernels as operations of torch, `torch.ops.loraft`, which launch them: torch sees one operation, not its inside.

They know no autograd; where Triton interprets (`TRITON_INTERPRET=1`) they run on a CPU too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ACROSS = 1024
"""Numbers that a program of an elementwise kernel takes."""
AS_WRITTEN = {"enable_fp_fusion": False}
"""Products and sums are rounded by themselves, as torch's kernels round them."""
LIBRARY = torch.library.Library("loraft", "DEF")  # type: ignore[no-untyped-call]


def _operation(schema: str, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an operation by its schema, by what it gives for tensors without numbers, and by what launches it."""

    def define(launch: Callable[..., Any]) -> Callable[..., Any]:
        name = f"loraft::{LIBRARY.define(schema)}"  # type: ignore[no-untyped-call]
        for device in ("CUDA", "CPU"):
            torch.library.impl(name, device, launch, lib=LIBRARY)
        torch.library.register_fake(name, shapes, lib=LIBRARY)
        return launch

    return define


def _by_row(columns: int) -> dict[str, Any]:
    """How rows of so many numbers are launched, one a program: each by warps whose threads take up to 16 numbers."""
    block = _power(columns)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512)), **AS_WRITTEN}


def _power(number: int) -> int:
    """The least power of two that is no less."""
    return 1 << (number - 1).bit_length()


@_operation(
    "norm(Tensor x, Tensor weight, float epsilon, float offset, bool rounds) -> (Tensor, Tensor)",
    lambda x, weight, *_: (torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)),
)
def launch_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float, rounds: bool) -> tuple[Tensor, Tensor]:
    """`[rows, columns]` and `[columns]`, one after the other in memory, to `[rows, columns]` and `[rows]`."""
    from loraft.kernels.fused import triton_kernels

    rows, columns = x.shape
    out, inverse = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    launched: Any = triton_kernels.norm_forward
    launched[(rows,)](x, weight, out, inverse, columns, epsilon, OFFSET=offset, ROUNDS=rounds, **_by_row(columns))
    return out, inverse


@_operation(
    "norm_backward(Tensor gradient, Tensor x, Tensor weight, Tensor inverse, float offset, bool rounds) -> Tensor",
    lambda gradient, x, *_: torch.empty_like(x),
)
def launch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, offset: float, rounds: bool
) -> Tensor:
    """The gradient by x, `[rows, columns]`."""
    from loraft.kernels.fused import triton_kernels

    (rows, columns), out = x.shape, torch.empty_like(x)
    launched: Any = triton_kernels.norm_backward
    launched[(rows,)](gradient, x, weight, inverse, out, columns, OFFSET=offset, ROUNDS=rounds, **_by_row(columns))
    return out


@_operation("gated(Tensor gate, Tensor up, bool gelu) -> Tensor", lambda gate, *_: torch.empty_like(gate))
def launch_gated(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """act(gate) · up, of tensors of one shape that lie without gaps."""
    from loraft.kernels.fused import triton_kernels

    out, numbers = torch.empty_like(gate), gate.numel()
    launched: Any = triton_kernels.gated_forward
    launched[(-(-numbers // ACROSS),)](gate, up, out, numbers, GELU=gelu, BLOCK=ACROSS, **AS_WRITTEN)
    return out


@_operation(
    "gated_backward(Tensor gradient, Tensor gate, Tensor up, bool gelu) -> (Tensor, Tensor)",
    lambda gradient, gate, up, gelu: (torch.empty_like(gate), torch.empty_like(up)),
)
def launch_gated_backward(gradient: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """The gradients by gate and up."""
    from loraft.kernels.fused import triton_kernels

    d_gate, d_up, numbers = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    launched: Any = triton_kernels.gated_backward
    launched[(-(-numbers // ACROSS),)](gradient, gate, up, d_gate, d_up, numbers, GELU=gelu, BLOCK=ACROSS, **AS_WRITTEN)
    return d_gate, d_up


def _turned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A place for what is turned, `[batch, heads, time, size]`, the heads of a token side by side."""
    batch, heads, time, size = tensor.shape
    return tensor.new_empty(batch, time, heads, size, dtype=dtype).transpose(1, 2)


@_operation(
    "rotate(Tensor query, Tensor key, Tensor cos, Tensor sin, ScalarType dtype, bool backward) -> (Tensor, Tensor)",
    lambda query, key, cos, sin, dtype, backward: (_turned(query, dtype), _turned(key, dtype)),
)
def launch_rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backward: bool
) -> tuple[Tensor, Tensor]:
    """`[batch, heads, time, size]`, turned by cos and sin `[1 or batch, time, size]`, or turned back."""
    from loraft.kernels.fused import triton_kernels

    batch, heads, time, size = query.shape
    turned = _turned(query, dtype), _turned(key, dtype)
    strides = (*query.stride()[:3], *key.stride()[:3])
    by_row = time * size if cos.shape[0] > 1 else 0
    half, key_heads = size // 2, key.shape[1]
    blocks = {"BLOCK_QUERY": _power(heads), "BLOCK_KEY": _power(key_heads), "BLOCK_HALF": _power(half)}
    launched: Any = triton_kernels.rotate
    launched[(batch * time,)](
        query, key, *turned, cos, sin, time, *strides, by_row, QUERY_HEADS=heads, KEY_HEADS=key_heads, HALF=half,
        BACKWARD=backward, **blocks, **AS_WRITTEN,
    )  # fmt: skip
    return turned
