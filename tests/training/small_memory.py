"""Memory that has room for so many tokens at once: what reads more is out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def room_for(tokens: int, *, trained: bool | None = None) -> Iterator[list[int]]:
    """The tokens of each batch that was read meanwhile; `trained` lets those with a graph, or those without, pass."""
    read: list[int] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not isinstance(module, nn.Embedding) or torch.is_grad_enabled() is trained:
            return
        read.append(given[0].numel())
        if read[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")

    hook = register_module_forward_pre_hook(look)
    try:
        yield read
    finally:
        hook.remove()
