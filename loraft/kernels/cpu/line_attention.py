"""Attention as a CPU trains with it where each line of a batch is a row, padded on the right.

Where there is dropout, torch's scaled-dot-product attention goes through several passes of float32 on a CPU, and its
backward in bfloat16 costs a multiple of the products.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from loraft.kernels.cpu.dropout import drawn
from loraft.kernels.linear_weights import product_dtype
from loraft.kernels.packed_attention import PRODUCTS_UP_TO, causal_bias

LINES = "loraft_lines"
ASKS_FOR_SDPA = re.compile(r"""_attn_implementation (?:==|in) [^\n]*["']sdpa["']""")
"""In the code of a type that does something for that name alone, as DeepSeek-V3.2 hides what its indexer left out."""


def attend_by_lines(model: PreTrainedModel) -> bool:
    """Let `model` train with `lines_attention` where its layers attend by transformers' interface; whether they do."""
    code = sys.modules[type(model).__module__]
    by_interface = hasattr(code, "ALL_ATTENTION_FUNCTIONS") and not ASKS_FOR_SDPA.search(inspect.getsource(code))
    taken = by_interface and model.config._attn_implementation == "sdpa"
    if taken:
        model.set_attn_implementation(LINES)
    return taken


def lines_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled-dot-product attention as transformers' attention layers call it.

    Queries are `[batch, heads, time, head_size]`, keys and values `[batch, key_value_heads, source, head_size]`. The
    mask is `[batch, 1, time, source]`, True where a token is seen or a number that is added; None stands for all, or
    for those before where `is_causal`. The position bias `[1, heads, time, source]` is added.

    Returns:
        `[batch, time, heads, head_size]`, and None for the weights.
    """
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    dtype, time, source = product_dtype(value), query.shape[2], key.shape[2]
    by_products = trained and source <= PRODUCTS_UP_TO.get(dtype, 0)
    if query.is_cuda or not (dropout or by_products):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **others,
        )  # fmt: skip
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bias = _added(attention_mask, dtype)
    if attention_mask is None and is_causal and time > 1:
        bias = causal_bias(source, dtype)[:time]
    if position_bias is not None:
        bias = position_bias.to(dtype) if bias is None else position_bias.to(dtype) + bias
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    out: Tensor = _LineProducts.apply(query, key, value, bias, scale, dropout)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to the scores: the least number where nothing is seen, so that no row is all infinite."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class _LineProducts(torch.autograd.Function):
    """dropout(softmax(scale · Q Kᵀ + bias)) V, keeping the weights and what was not dropped of them.

    With P the weights, D what is kept of them times the factor, and dP = (dO Vᵀ) ∘ D, the gradients are
    dV = (P ∘ D)ᵀ dO, dS = P ∘ (dP - rowsum(dP ∘ P)), dQ = scale · dS K, dK = scale · dSᵀ Q, and dS that of the bias.

    Source: Dao et al. 2022, FlashAttention, appendix B.4 (https://arxiv.org/abs/2205.14135).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        shape = (*query.shape[:3], key.shape[2])
        q, k, v = (query * scale).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(q, k.transpose(1, 2)).view(shape)
        if bias is not None:
            scores += bias
        weights = scores.softmax(-1).flatten(0, 1)
        kept, factor = drawn(weights, dropout) if dropout else (None, 1.0)
        out = torch.bmm(weights if kept is None else weights * kept, v).mul_(factor)
        ctx.save_for_backward(q, k, v, weights, kept)
        ctx.shape, ctx.scale, ctx.factor = shape, scale, factor
        ctx.bias_shape = None if bias is None or not ctx.needs_input_grad[3] else bias.shape
        return out.view(*query.shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, kept = ctx.saved_tensors
        d_out = (grads[0] * ctx.factor).flatten(0, 1)
        d_weights = torch.bmm(d_out, v.transpose(1, 2))
        seen = weights
        if kept is not None:
            d_weights, seen = d_weights.mul_(kept), weights * kept
        d_v = torch.bmm(seen.transpose(1, 2), d_out)
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_q, d_k = torch.bmm(d_scores, k).mul_(ctx.scale), torch.bmm(d_scores.transpose(1, 2), q)
        d_bias = None if ctx.bias_shape is None else d_scores.view(ctx.shape).sum_to_size(ctx.bias_shape)
        d_query, d_key, d_value = (each.view(*ctx.shape[:2], *each.shape[1:]) for each in (d_q, d_k, d_v))
        return d_query, d_key, d_value, d_bias, None, None


AttentionInterface.register(LINES, lines_attention)
AttentionMaskInterface.register(LINES, sdpa_mask)
