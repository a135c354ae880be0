"""Attention whose scores are capped (Gemma 2), for rows that lie end to end: torch's flex attention, compiled.

One kernel takes all rows, windows too; which blocks of keys a block of queries sees is found once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from loraft.kernels.transfer import to_device

BLOCK = 128
"""Tokens of a block, as flex attention has them."""
VARIANTS = 64
"""How often it may be compiled: for a trial and a model, gradients or none, many blocks or one.

After 8 times torch would take what is not compiled, which holds the scores of all pairs of tokens.
"""
AT_ONCE = "capped_rows_at_once"
"""The attribute of an attention module whose capped scores take this kernel."""


def fuse_capped(model: nn.Module) -> int:
    """Let attention that caps its scores, and drops no weights, take all rows at once; the number of its modules."""
    found = capped_modules(model)
    for module in found:
        setattr(module, AT_ONCE, True)
    return len(found)


def capped_modules(model: nn.Module) -> list[nn.Module]:
    """The attention modules that cap their scores and drop no weights, which flex attention cannot."""
    return [
        module
        for module in model.modules()
        if getattr(module, "attn_logit_softcapping", None) is not None and not getattr(module, "attention_dropout", 0.0)
    ]


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float, *, cap: float, window: int | None
) -> Tensor:
    """`[time, heads, head_size]` from such queries and `[time, key_value_heads, head_size]` keys and values."""
    blocks = _blocks(tuple(lengths), window, query.device)
    given = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    # What is compiled is compiled anew for another state of autocast, which has nothing to do here.
    with torch.autocast(query.device.type, enabled=False):
        out: Tensor = compiled()(*given, score_mod=_capping(cap), block_mask=blocks, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


@cache
def compiled() -> Callable[..., Any]:
    """The kernel: compiled at its first call, and for any length at the first call with another one.

    Not with `dynamic=True`, by which torch 2.13 takes the cap for a number that changes, and cannot compile it.
    """
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    return torch.compile(flex_attention)


def _capping(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@lru_cache(maxsize=4)
def _blocks(lengths: tuple[int, ...], window: int | None, device: torch.device) -> Any:
    """The blocks of keys that each block of queries sees.

    A token sees itself and what comes before it, from the first token of its row or of its window on; neither goes
    down from one token to the next, so that the blocks that are seen lie side by side. `create_block_mask` would look
    at each pair of tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    ends = torch.tensor([0, *lengths]).cumsum(0)
    time = int(ends[-1])
    first = ends[:-1].repeat_interleave(torch.tensor(lengths))
    if window is not None:
        first = torch.maximum(first, torch.arange(time) - window + 1)
    own, begin = torch.arange(len(first[::BLOCK])), first[::BLOCK] // BLOCK
    numbers, places = own - begin + 1, (begin[:, None] + own).clamp(max=len(own) - 1)
    with torch.inference_mode(mode=False):  # a mask that an evaluation made serves the steps after it
        on_device = to_device(first.int(), device)

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key >= on_device[query]) & (key <= query)

        made = BlockMask.from_kv_blocks(
            numbers[None, None].int(),
            places[None, None].int(),
            BLOCK_SIZE=BLOCK,
            mask_mod=seen,
            seq_lengths=(time, time),
        )
        for name, part in tuple(vars(made).items()):  # `made.to` would wait for the device
            if isinstance(part, Tensor):
                setattr(made, name, to_device(part, device))
        return made
