"""Attention of rows that lie end to end in one kernel of CUDA, with no mask: as many launches for one row as for many.

A form takes queries `[time, heads, head_size]`, keys and values `[time, key_value_heads, head_size]`, `ends` of the
rows, the length of the longest one and the factor on the scores, and gives `[time, heads, head_size]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from loraft.kernels.transfer import to_device

Form = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
CAUSAL = 1
"""The mask of `_efficient_attention_forward` that hides from a token what comes behind it."""
ALIGNED = 16
"""A head takes a multiple of so many bytes there."""


def form_for_rows(query: Tensor, value: Tensor, *, dropout: float, window: int | None) -> Form | None:
    """The kernel that takes all rows at once, or None where this GPU has none that does."""
    in_16_bits = query.dtype in (torch.float16, torch.bfloat16)
    forms: list[partial[Tensor]] = []
    if in_16_bits and not dropout and varlen_takes(window):
        forms.append(partial(varlen_attention, window=window))
    aligned = query.shape[-1] * query.element_size() % ALIGNED == 0
    if aligned and (in_16_bits or query.dtype == torch.float32):
        forms.append(partial(efficient_attention, dropout=dropout, window=window))
    tried = query.device, query.dtype, query.shape[-1], value.shape[-1]
    return next((form for form in forms if _runs(form.func, *tried)), None)


@cache
def _runs(
    form: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, head_size: int, value_size: int
) -> bool:
    """Whether a kernel runs on a GPU with heads of these sizes, tried with one token.

    Flash attention, by which varlen goes, wants compute capability 8.0, keys and values of one size, and no large one.
    """
    query, value = (torch.zeros(1, 1, size, dtype=dtype, device=device) for size in (head_size, value_size))
    try:
        with torch.no_grad():
            form(query, query, value, row_ends_of([1], device), 1, 1.0)
    except torch.OutOfMemoryError:  # which says nothing of the kernel, and is not remembered
        raise
    except RuntimeError:
        return False
    return True


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


def row_ends_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """`[rows + 1]`, int32: where rows begin, and where the last one ends."""
    return to_device(torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32), device)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float, *, window: int | None = None
) -> Tensor:
    """By `torch.nn.attention.varlen.varlen_attn`, which is for 16 bits and knows no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    names = _varlen_parameters()
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
    return cast("Tensor", varlen_attn(query, key, value, ends, ends, longest, longest, **options))


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float,
    *, dropout: float = 0.0, window: int | None = None,
) -> Tensor:  # fmt: skip
    """By the kernel that scaled-dot-product attention takes in float32, which takes rows, and drops weights, too.

    torch calls it so for nested tensors (torch/nested/_internal/sdpa.py). It wants as many keys as queries. Windows
    are those of the kernel, which hides what is `window` tokens back (kernel_forward.h and kernel_backward.h).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    q, k, v = (tensor.contiguous()[None] for tensor in (query, key, value))
    out: Tensor = _EfficientRows.apply(q, k, v, ends, longest, scale, dropout, window)  # type: ignore[no-untyped-call]
    return out[0]


class _EfficientRows(torch.autograd.Function):
    """The kernel with its backward: torch's own derivative of it leaves the window out, and is wrong then."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, scale: float, dropout: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        out, logsumexp, seed, offset, *longest_of = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, ends, ends, longest, longest, dropout, CAUSAL, any(ctx.needs_input_grad),
            scale=scale, window_size=window,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, ends, out, logsumexp, seed, offset)
        ctx.how = (*longest_of, dropout, scale, window)
        return cast("Tensor", out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, ends, out, logsumexp, seed, offset = ctx.saved_tensors
        of_queries, of_keys, dropout, scale, window = ctx.how
        d_q, d_k, d_v, _ = torch.ops.aten._efficient_attention_backward(
            grads[0], q, k, v, None, out, ends, ends, of_queries, of_keys, logsumexp, dropout, seed, offset, CAUSAL,
            False, scale=scale, window_size=window,
        )  # fmt: skip
        return d_q, d_k, d_v, None, None, None, None, None
