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
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["PADDING", "PRODUCTS_UP_TO", "ROWS", "attend_rows", "rows_attention", "varlen_takes"]

ROWS = "loraft_rows"
PADDING = 0.7
"""The share of products that a row may add for being computed together with a longer one: a call costs as much."""
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

    Rows of like length are computed together, padded on the right: a key behind the last token of its row is hidden
    by the causal mask alone, and what a query behind it gives is dropped.

    With P the weights, the gradients are dV = Pᵀ dO, dS = P ∘ (dP - rowsum(dP ∘ P)) where dP = dO Vᵀ,
    dQ = scale · dS K and dK = scale · dSᵀ Q.

    Source: Dao et al. 2022, FlashAttention, appendix B.2 (https://arxiv.org/abs/2205.14135).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        weights = []
        for block in _blocks(lengths):
            q, k, v = _fold(query[block.places], groups), _fold(key[block.places], 1), _fold(value[block.places], 1)
            p = _causal_weights(torch.bmm(q, k.transpose(1, 2)), block.places.shape[1], scale)
            weights.append(p)
            out[block.tokens] = _unfold(torch.bmm(p, v), block, groups)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.lengths, ctx.scale, ctx.groups = lengths, scale, groups  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for block, p in zip(_blocks(ctx.lengths), weights, strict=True):
            q, k = _fold(query[block.places], ctx.groups), _fold(key[block.places], 1)
            v = _fold(value[block.places], 1)
            d_out = _fold(grads[0][block.places].masked_fill(block.beyond, 0), ctx.groups)
            d_value[block.tokens] = _unfold(torch.bmm(p.transpose(1, 2), d_out), block, 1)
            d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(d_out, v.transpose(1, 2)), p, -1, p.dtype)
            d_query[block.tokens] = _unfold(torch.bmm(d_scores, k), block, ctx.groups).mul_(ctx.scale)
            d_key[block.tokens] = _unfold(torch.bmm(d_scores.transpose(1, 2), q), block, 1).mul_(ctx.scale)
        return d_query, d_key, d_value, None, None


@dataclass(frozen=True)
class _Block:
    """Rows of like length, computed together.

    Attributes:
        places: `[rows, longest]`, where the tokens of each row lie; behind its end any place that exists.
        beyond: `[rows, longest, 1, 1]`, whether a place is behind the end of its row.
        inside: `[rows, longest]`, the opposite.
        tokens: `[tokens]`, the places of all its tokens, row after row.
    """

    places: Tensor
    beyond: Tensor
    inside: Tensor
    tokens: Tensor


@lru_cache(maxsize=8)
def _blocks(lengths: tuple[int, ...]) -> tuple[_Block, ...]:
    """The rows in groups of like length; each group wastes at most `PADDING` of its products."""
    starts = [row.start for row in _slices(lengths)]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    groups: list[list[int]] = []
    for row in order:
        if groups and lengths[groups[-1][0]] ** 2 <= (1 + PADDING) * lengths[row] ** 2:
            groups[-1].append(row)
        else:
            groups.append([row])
    return tuple(_block([starts[row] for row in group], [lengths[row] for row in group]) for group in groups)


def _block(starts: list[int], lengths: list[int]) -> _Block:
    steps = torch.arange(max(lengths))
    inside = steps < torch.tensor(lengths)[:, None]
    places = torch.tensor(starts)[:, None] + torch.where(inside, steps, 0)
    return _Block(places, ~inside[:, :, None, None], inside, places[inside])


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = itertools.accumulate(lengths, initial=0)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _fold(rows: Tensor, groups: int) -> Tensor:
    """`[rows, time, key_value_heads · groups, size]` -> `[rows · key_value_heads, groups · time, size]`.

    The query heads that share a key lie one after the other, so that no key is copied.
    """
    count, time, heads, size = rows.shape
    split = rows.view(count, time, heads // groups, groups, size).permute(0, 2, 3, 1, 4)
    return split.reshape(count * heads // groups, groups * time, size)


def _unfold(folded: Tensor, block: _Block, groups: int) -> Tensor:
    """The inverse of `_fold`, without what is behind the rows' ends: `[tokens, heads, size]`."""
    count, time = block.places.shape
    split = folded.view(count, -1, groups, time, folded.shape[2]).permute(0, 3, 1, 2, 4)
    return split.reshape(count, time, -1, folded.shape[2])[block.inside]


def _causal_weights(scores: Tensor, time: int, scale: float) -> Tensor:
    """Softmax of `[rows · heads, groups · time, time]` scores under the causal mask, in their own dtype."""
    by_group = scores.view(scores.shape[0], -1, time, time)
    return by_group.mul_(scale).add_(_causal_bias(time, scores.dtype)).softmax(-1).view_as(scores)


@lru_cache(maxsize=64)
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
