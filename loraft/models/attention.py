"""Attention for rows that lie end to end in one batch: each row attends to itself alone, causally.

This module knows kernels and which of them fits. It refuses to know models: transformers calls it by the name
`ROWS` through its `AttentionInterface`, and since no mask function is registered under that name, no
`[time, time]` mask is ever built. A forward that is given no `row_lengths` holds one row in each line of the batch.

Which kernel, and why:

- CUDA, 16 bits: `torch.nn.attention.varlen.varlen_attn`, one kernel for all rows.
- CPU, rows up to `PRODUCTS_UP_TO` tokens (by dtype): plain products with a backward of our own. In bfloat16 the
  backward of scaled-dot-product attention costs a multiple of it; in float32 it gains little, and on short rows only.
- Longer rows, float32 on CUDA, or attention dropout: scaled-dot-product attention, row by row.
- A soft cap, or a sliding window shorter than the row: products written out, row by row.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["PRODUCTS_UP_TO", "ROWS", "attend_rows", "rows_attention", "varlen_takes"]

ROWS = "loraft_rows"
PRODUCTS_UP_TO = {torch.bfloat16: 512, torch.float32: 128}


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_lengths: Sequence[int] | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend row by row, in the form that transformers' attention layers call.

    Args:
        module: The attention layer; not used.
        query: `[batch, heads, time, head_size]`.
        key: `[batch, key_value_heads, time, head_size]`.
        value: `[batch, key_value_heads, time, head_size]`.
        attention_mask: Not used: rows are whole, causal, and padded on the right if at all.
        scaling: The factor on the scores; None is 1 / √head_size.
        dropout: The dropout on the attention weights.
        row_lengths: The lengths of the rows that lie end to end; `batch` is 1 then.
        softcap: Scores become `softcap · tanh(scores / softcap)`.
        sliding_window: A token sees itself and the `sliding_window - 1` before it.

    Returns:
        `[batch, time, heads, head_size]`, and None for the weights that are never held.
    """
    batch, heads, time, head_size = query.shape
    lengths = list(row_lengths) if row_lengths is not None else [time] * batch
    scale = scaling if scaling is not None else head_size**-0.5
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    out = attend_rows(q, k, v, lengths, scale, dropout=dropout, softcap=softcap, window=sliding_window)
    return out.view(batch, time, heads, -1), None


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scale: float,
    *,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each of the rows that lie end to end.

    Args:
        query: `[time, heads, head_size]`, the rows of `lengths` one after the other.
        key: `[time, key_value_heads, head_size]`.
        value: `[time, key_value_heads, head_size]`.
        lengths: The number of tokens of each row; they sum to `time`.
        scale: The factor on the scores.
        dropout: The dropout on the attention weights.
        softcap: Scores become `softcap · tanh(scores / softcap)`.
        window: A token sees itself and the `window - 1` before it.

    Returns:
        `[time, heads, head_size]`.
    """
    longest = max(lengths)
    window = window if window is not None and window < longest else None
    written_out = softcap is not None or window is not None
    if query.is_cuda and query.dtype != torch.float32 and softcap is None and not dropout and varlen_takes(window):
        return _varlen(query, key, value, lengths, scale, window)
    if query.device.type == "cpu" and not written_out and not dropout and longest <= PRODUCTS_UP_TO.get(query.dtype, 0):
        out: Tensor = _RowProducts.apply(query, key, value, tuple(lengths), scale)  # type: ignore[no-untyped-call]
        return out
    rows = [(query[row], key[row], value[row]) for row in _slices(lengths)]
    if written_out:
        return torch.cat([_written_out(q, k, v, scale, dropout, softcap, window) for q, k, v in rows])
    return torch.cat([_sdpa(q, k, v, scale, dropout) for q, k, v in rows])


class _RowProducts(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V for each row, keeping only the weights of the rows for the backward pass.

    With P the weights, the gradients are dV = Pᵀ dO, dS = P ∘ (dP - rowsum(dP ∘ P)) where dP = dO Vᵀ,
    dQ = scale · dS K and dK = scale · dSᵀ Q.

    Source: Dao et al. 2022, FlashAttention, appendix B.2 (https://arxiv.org/abs/2205.14135).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        out = torch.empty(query.shape[0], query.shape[1], value.shape[2], dtype=query.dtype)
        weights = []
        for rows in _slices(lengths):
            q, k, v = _fold(query[rows], groups), key[rows].transpose(0, 1), value[rows].transpose(0, 1)
            p = _causal_weights(torch.bmm(q, k.transpose(1, 2)), scale)
            weights.append(p)
            out[rows] = _unfold(torch.bmm(p, v), groups)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.lengths, ctx.scale, ctx.groups = lengths, scale, groups  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for rows, p in zip(_slices(ctx.lengths), weights, strict=True):
            q, k, v = _fold(query[rows], ctx.groups), key[rows].transpose(0, 1), value[rows].transpose(0, 1)
            d_out = _fold(grads[0][rows], ctx.groups)
            d_value[rows] = torch.bmm(p.transpose(1, 2), d_out).transpose(0, 1)
            d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(d_out, v.transpose(1, 2)), p, -1, p.dtype)
            d_query[rows] = _unfold(torch.bmm(d_scores, k), ctx.groups).mul_(ctx.scale)
            d_key[rows] = torch.bmm(d_scores.transpose(1, 2), q).mul_(ctx.scale).transpose(0, 1)
        return d_query, d_key, d_value, None, None


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _fold(row: Tensor, groups: int) -> Tensor:
    """`[time, key_value_heads · groups, size]` -> `[key_value_heads, groups · time, size]`: no key is copied."""
    time, heads, size = row.shape
    return (
        row.view(time, heads // groups, groups, size).permute(1, 2, 0, 3).reshape(heads // groups, groups * time, size)
    )


def _unfold(folded: Tensor, groups: int) -> Tensor:
    """The inverse of `_fold`."""
    heads, rows, size = folded.shape
    return (
        folded.view(heads, groups, rows // groups, size)
        .permute(2, 0, 1, 3)
        .reshape(rows // groups, heads * groups, size)
    )


def _causal_weights(scores: Tensor, scale: float) -> Tensor:
    """Softmax of `[heads, groups · time, time]` scores under the causal mask, in their own dtype."""
    time = scores.shape[2]
    by_group = scores.view(scores.shape[0], -1, time, time)
    return by_group.mul_(scale).add_(_causal_bias(time, scores.dtype)).softmax(-1).view_as(scores)


@cache
def _causal_bias(time: int, dtype: torch.dtype) -> Tensor:
    return torch.full((time, time), float("-inf"), dtype=dtype).triu_(1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    out = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, softcap: float | None, window: int | None
) -> Tensor:
    groups, time = query.shape[1] // key.shape[1], query.shape[0]
    k, v = (tensor.repeat_interleave(groups, dim=1).transpose(0, 1) for tensor in (key, value))
    scores = torch.matmul(query.transpose(0, 1), k.transpose(1, 2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.ones(time, time, dtype=torch.bool, device=query.device)
    hidden = ahead.triu(1) if window is None else ahead.triu(1) | ahead.tril(-window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, v).transpose(0, 1)


@cache
def _varlen_parameters() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def varlen_takes(window: int | None) -> bool:
    """Whether this torch has the variable-length kernel, and with windows where one is asked for."""
    names = _varlen_parameters()
    return "window_size" in names or ("is_causal" in names and window is None)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    names = _varlen_parameters()
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(query.device)
    options: dict[str, Any] = {"scale": scale} if "scale" in names else {}
    if "scale" not in names:
        query = query * (scale * query.shape[-1] ** 0.5)
    if "window_size" in names:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in names:
            options["enable_gqa"] = True
        else:
            key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for t in (key, value))
    longest = max(lengths)
    return cast("Tensor", varlen_attn(query, key, value, ends, ends, longest, longest, **options))


AttentionInterface.register(ROWS, rows_attention)
