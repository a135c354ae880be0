"""Attention for rows that lie end to end in one batch: each row attends to itself alone, causally.

A forward that is given no `row_lengths` holds one row in each line of the batch.

Which kernel, and why:

- CUDA: one kernel for all rows (`cuda_rows`), windows, dropout and float32 among them; for scores that are capped
  flex attention (`fused/capped_rows`), where a run has tried it.
- CPU, rows up to `PRODUCTS_UP_TO` tokens (by dtype): plain products with a backward of our own. In bfloat16 the
  backward of scaled-dot-product attention costs a multiple of it; in float32 it gains little, and on short rows only.
- Longer rows or attention dropout on a CPU: scaled-dot-product attention, row by row.
- Else a soft cap, or a sliding window shorter than the row: products written out, row by row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from loraft.kernels.cuda_rows import form_for_rows, row_ends_of
from loraft.kernels.fused.capped_rows import AT_ONCE, capped_attention
from loraft.kernels.linear_weights import product_dtype
from loraft.kernels.shared_prefix import taken_back, written_out

ROWS = "loraft_rows"
PADDING = 0.7
"""The share of products that a row may add for being computed together with a longer one: a call costs as much."""
SHORT = 64
"""Rows up to this many tokens are computed together whatever they add: a call costs more than all their products."""
STEP = 16
"""Blocks are a multiple of this many tokens long: kernels are made anew for each shape, so few shapes cost less."""
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
    **others: Any,
) -> tuple[Tensor, None]:
    """`attend_rows` as transformers' attention layers call it.

    Queries are `[batch, heads, time, head_size]`, keys and values `[batch, key_value_heads, time, head_size]`; where
    `row_lengths` lie end to end, `batch` is 1, and `row_ends` among the others are `ends` of `attend_rows`; where they
    have a `shared_prefix`, `time` has that once, and these rows are whole. A scaling of None is 1 / √head_size. The
    mask is not used: rows are whole, causal, and padded on the right if at all.

    Returns:
        `[batch, time, heads, head_size]`, and None for the weights that are never held.
    """
    batch, heads, time, head_size = query.shape
    lengths = tuple(row_lengths) if row_lengths is not None else (time,) * batch
    scale, prefix = scaling if scaling is not None else head_size**-0.5, others.get("shared_prefix", 0)
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if prefix:
        q, k, v = (written_out(tensor, lengths, prefix) for tensor in (q, k, v))
    more: dict[str, Any] = {"dropout": dropout, "softcap": softcap, "window": sliding_window}
    more["capped_at_once"] = getattr(module, AT_ONCE, False)
    out = attend_rows(q, k, v, lengths, scale, ends=others.get("row_ends"), **more)
    out = taken_back(out, lengths, prefix) if prefix else out
    return out.view(batch, time, heads, -1), None


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scale: float,
    *,
    ends: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
    capped_at_once: bool = False,
) -> Tensor:
    """Causal attention within each of the rows that lie end to end.

    Args:
        query: `[time, heads, head_size]`, the rows of `lengths` one after the other.
        key: `[time, key_value_heads, head_size]`.
        value: Likewise.
        lengths: The number of tokens of each row; they sum to `time`.
        scale: The factor on the scores.
        ends: `[rows + 1]`, int32 and on the device, where rows begin and the last one ends; None has it made.
        dropout: On the attention weights.
        softcap: Scores become `softcap · tanh(scores / softcap)`.
        window: A token sees itself and the `window - 1` before it.
        capped_at_once: On CUDA all rows take one kernel where there is a soft cap.

    Returns:
        `[time, heads, head_size]`, in the dtype of autocast, or of `value` where it is off.
    """
    # Rotary positions and norms leave float32 queries and keys beside values in 16 bits.
    dtype = product_dtype(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    longest = max(lengths)
    window = window if window is not None and window < longest else None
    written_out = softcap is not None or window is not None
    if query.is_cuda and softcap is None:
        form = form_for_rows(query, value, dropout=dropout, window=window)
        if form is not None:
            ends = row_ends_of(lengths, query.device) if ends is None else ends
            return form(query, key, value, ends, longest, scale)
    if query.is_cuda and softcap is not None and capped_at_once and not dropout:
        return capped_attention(query, key, value, lengths, scale, cap=softcap, window=window)
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
    by the causal mask alone, and what a query behind it gives is dropped. Everything is moved into that layout at
    once, and back.

    With P the weights, the gradients are dV = Pᵀ dO, dS = P ∘ (dP - rowsum(dP ∘ P)) where dP = dO Vᵀ,
    dQ = scale · dS K and dK = scale · dSᵀ Q.

    Source: Dao et al. 2022, FlashAttention, appendix B.2 (https://arxiv.org/abs/2205.14135).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        blocks, queries, keys = _layout(lengths, query.shape[1], key.shape[1])
        q = queries.into_blocks(query).mul_(scale)
        k, v = keys.into_blocks(key), keys.into_blocks(value)
        out = q.new_empty(q.shape[0], v.shape[1])
        weights = []
        for block in blocks:
            scores = torch.bmm(block.of_queries(q), block.of_keys(k).transpose(1, 2))
            weights.append(_causal_weights(scores, block.time))
            torch.bmm(weights[-1], block.of_keys(v), out=block.of_queries(out))
        ctx.save_for_backward(q, k, v, *weights)
        ctx.layout, ctx.scale = (blocks, queries, keys), scale
        return queries.out_of_blocks(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        blocks, queries, keys = ctx.layout
        d_out = queries.into_blocks(grads[0]).index_fill_(0, queries.beyond, 0)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for block, p in zip(blocks, weights, strict=True):
            d_out_here = block.of_queries(d_out)
            torch.bmm(p.transpose(1, 2), d_out_here, out=block.of_keys(d_v))
            d_p = torch.bmm(d_out_here, block.of_keys(v).transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
            torch.bmm(d_scores, block.of_keys(k), out=block.of_queries(d_q))
            torch.bmm(d_scores.transpose(1, 2), block.of_queries(q), out=block.of_keys(d_k))
        d_query = queries.out_of_blocks(d_q.mul_(ctx.scale))
        return d_query, keys.out_of_blocks(d_k), keys.out_of_blocks(d_v), None, None


@dataclass(frozen=True)
class _Block:
    """Rows of like length, computed together.

    Attributes:
        batch: The products in a batch: one for each row and each head of keys and values.
        time: The tokens of the longest row.
        groups: The query heads that share a key; they lie one after the other, so that no key is copied.
        start: The places of keys before it.
    """

    batch: int
    time: int
    groups: int
    start: int

    def of_keys(self, placed: Tensor) -> Tensor:
        """Its part of keys or values `[places, size]`: `[batch, time, size]`."""
        return self._part(placed, 1)

    def of_queries(self, placed: Tensor) -> Tensor:
        """Its part of queries or outputs `[places · groups, size]`: `[batch, groups · time, size]`."""
        return self._part(placed, self.groups)

    def _part(self, placed: Tensor, groups: int) -> Tensor:
        first, length = self.start * groups, self.batch * self.time * groups
        return placed[first : first + length].view(self.batch, groups * self.time, -1)


@dataclass(frozen=True)
class _Places:
    """Where the tokens of rows that lie end to end stand in the blocks, a place for each head.

    Attributes:
        there: Of each place the token and head, as `token · heads + head`; behind the end of a row any that exists.
        back: Of each token and head the place.
        beyond: The places that are behind the end of their row.
    """

    there: Tensor
    back: Tensor
    beyond: Tensor
    heads: int

    def into_blocks(self, tensor: Tensor) -> Tensor:
        """`[time, heads, size]` to `[places, size]`."""
        return tensor.reshape(-1, tensor.shape[2]).index_select(0, self.there)

    def out_of_blocks(self, placed: Tensor) -> Tensor:
        """`[places, size]` to `[time, heads, size]`."""
        return placed.index_select(0, self.back).view(-1, self.heads, placed.shape[1])


@lru_cache(maxsize=8)
def _layout(lengths: tuple[int, ...], heads: int, key_value_heads: int) -> tuple[list[_Block], _Places, _Places]:
    """The rows in groups of like length, and the places of queries and of keys in them."""
    starts = torch.tensor([row.start for row in _slices(lengths)])
    blocks: list[_Block] = []
    tokens, inside = [], []
    for group in _of_like_length(lengths):
        steps = torch.arange(math.ceil(lengths[group[0]] / STEP) * STEP)
        inside.append(steps < torch.tensor([lengths[row] for row in group])[:, None])
        tokens.append(starts[group, None] + torch.where(inside[-1], steps, 0))
        start = blocks[-1].start + blocks[-1].batch * blocks[-1].time if blocks else 0
        blocks.append(_Block(len(group) * key_value_heads, len(steps), heads // key_value_heads, start))
    return blocks, _places(tokens, inside, heads), _places(tokens, inside, key_value_heads)


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[groups[-1][0]] if groups else math.inf
        if longest <= SHORT or longest**2 <= (1 + PADDING) * lengths[row] ** 2:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _places(tokens: Sequence[Tensor], inside: Sequence[Tensor], heads: int) -> _Places:
    """The places of `heads` heads in blocks whose `[rows, time]` tokens are given; a block holds row, head, time."""
    head = torch.arange(heads)[:, None]
    there = torch.cat([(block[:, None] * heads + head).flatten() for block in tokens])
    real = torch.cat([block[:, None].expand(-1, heads, -1).flatten() for block in inside])
    places = torch.arange(len(there))
    back = torch.empty(int(real.sum()), dtype=torch.long)
    back[there[real]] = places[real]
    return _Places(there, back, places[~real], heads)


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = itertools.accumulate(lengths, initial=0)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _causal_weights(scores: Tensor, time: int) -> Tensor:
    """Softmax of `[batch, groups · time, time]` scores under the causal mask, in their own dtype."""
    by_group = scores.view(scores.shape[0], -1, time, time)
    return by_group.add_(causal_bias(time, scores.dtype)).softmax(-1).view_as(scores)


@lru_cache(maxsize=64)
def causal_bias(time: int, dtype: torch.dtype) -> Tensor:
    """What is added to `[time, time]` scores so that no token sees those behind it."""
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


AttentionInterface.register(ROWS, rows_attention)
