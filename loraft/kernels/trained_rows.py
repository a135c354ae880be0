"""Rows of embeddings that are trained by themselves, without a copy of the whole table: the numbers of peft.

peft copies the table at every call, with the trained rows in it, and its gradient is as large as the table. Here the
rows that were looked up, or the logits of these tokens, are put in the place of the table's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from loraft.kernels.transfer import to_device


def patch_trained_rows(model: nn.Module) -> None:
    """Let every layer of `model` with trained rows compute without a copy of its table."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRows


@lru_cache(maxsize=8)
def _on(device: torch.device, tokens: tuple[int, ...]) -> Tensor:
    """The ids on the device, where they are copied once."""
    with torch.inference_mode(False):  # gradients go through what is indexed by them later
        return to_device(tokens, device)


class TrainedRows(TrainableTokensLayer):
    """peft's layer over an embedding, or over a head, with rows of its own for some tokens."""

    def forward_adapters(self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Ids `[...]` to `[..., width]`, or hidden states `[..., width]` to logits `[..., rows]`."""
        base: Any = self.base_layer
        tokens = self.token_indices.get(active_adapters[0], []) if len(active_adapters) == 1 else []
        as_made = self.disable_adapters or self.merged or getattr(base, "bias", None) is not None
        if as_made or not tokens or len(set(tokens)) < len(tokens) or args or kwargs:
            unchanged: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return unchanged
        rows = self.trainable_tokens_delta[active_adapters[0]].to(base.weight.dtype)
        of_rows, own = _on(x.device, tuple(tokens)), base(x)
        if not isinstance(base, nn.Embedding):
            return own.index_copy(-1, of_rows, linear(x, rows).to(own.dtype))  # type: ignore[no-any-return]
        places = torch.full((len(base.weight),), -1, device=x.device)
        places[of_rows] = torch.arange(len(tokens), device=x.device)
        place, scale = places[x], self._get_embed_scale()  # type: ignore[no-untyped-call]
        trained = embedding(place.clamp(min=0), rows)
        return torch.where((place >= 0)[..., None], trained if scale is None else trained * scale.to(rows.dtype), own)
