"""What flex attention is once it is compiled: one kernel forward, and backward one after the sum that it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("rehearsal::flex_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("rehearsal::flex_attention_backward", mutates_args=())
def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> list[Tensor]:
    raise NotImplementedError


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> list[Tensor]:
    (grad * out).sum(-1)
    return [torch.empty_like(each) for each in (query, key, value)]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


_forward.register_autograd(lambda ctx, grad, _: tuple(_backward(grad, *ctx.saved_tensors)), setup_context=_keep)


def flex_attention(query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, **_: Any) -> Tensor:
    """In the place of `compiled()`."""
    assert block_mask.seq_lengths == (query.shape[2], key.shape[2])
    assert all(part.is_cuda for part in block_mask.as_tuple(flatten=False) if isinstance(part, Tensor))
    out: Tensor = _forward(query, key, value)[0]
    return out
