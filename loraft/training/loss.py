"""The loss: the negative log-likelihood of the trained tokens, and nothing else.

This module knows how to get from hidden states to a sum of losses without ever holding logits for a whole batch:
the head runs only where there is a target, and over a chunk of targets at a time. It refuses to divide: a sum is
what adds up exactly over batches and ranks, and the loop divides it by the trained tokens of its whole window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from loraft.data.batches import Batch
from loraft.models.families import Family

__all__ = ["CHUNK_BYTES", "TargetLoss", "chunked_loss", "targets_in_chunk"]

CHUNK_BYTES = 64 * 2**20
"""The most that the float32 logits of one chunk may take."""


def targets_in_chunk(vocabulary: int) -> int:
    """The targets whose float32 logits over `vocabulary` entries fit in `CHUNK_BYTES`; at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def chunked_loss(hidden: Tensor, target_ids: Tensor, logits_of: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """The summed negative log-likelihood of `target_ids`, computed `chunk` targets at a time.

    Where a gradient is wanted, the logits of a chunk are computed anew in the backward pass, so that at no time
    more than one chunk of them is held.

    Args:
        hidden: `[targets, hidden]`, the final hidden states that predict the targets.
        target_ids: `[targets]`.
        logits_of: From `[n, hidden]` to logits `[n, vocab]`.
        chunk: The most targets whose logits are held at once.

    Returns:
        A float32 scalar, in nats.

    Source: L = -Σ log softmax(logits)[target].
    """

    def loss_of(part: Tensor, ids: Tensor) -> Tensor:
        return cross_entropy(logits_of(part).float(), ids, reduction="sum")

    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(target_ids), chunk):
        part, ids = hidden[start : start + chunk], target_ids[start : start + chunk]
        if torch.is_grad_enabled():
            total = total + checkpoint(loss_of, part, ids, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + loss_of(part, ids)
    return total


class TargetLoss(nn.Module):
    """A causal language model whose forward takes a `Batch` and gives the summed loss of its targets.

    The loss is a module's forward so that whatever wraps the module (for data parallel training, say) sees it.
    """

    def __init__(self, model: PreTrainedModel, family: Family, autocast: torch.dtype | None = None) -> None:
        """Wrap `model`.

        Args:
            model: The model itself, with adapters injected where there are any, not a wrapper around it.
            family: Says what the model does to its logits.
            autocast: The dtype of products; None computes in the weights' own.
        """
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._chunk = targets_in_chunk(model.config.vocab_size)
        self._softcap = _number(model.config, family.final_softcap)
        scale, divisor = _number(model.config, family.logit_multiplier), _number(model.config, family.logit_divisor)
        self._scale = (scale or 1.0) / (divisor or 1.0)

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of the targets of `batch`, in nats: a float32 scalar."""
        options: dict[str, Any] = {}
        if batch.row_lengths is not None:
            options = {"position_ids": batch.position_ids, "row_lengths": batch.row_lengths}
        device = batch.input_ids.device.type
        with torch.autocast(device, dtype=self._autocast, enabled=self._autocast is not None):
            stack = self.model.base_model
            hidden = stack(input_ids=batch.input_ids, use_cache=False, **options).last_hidden_state
            wanted = hidden.flatten(0, 1).index_select(0, batch.target_positions)
            return chunked_loss(wanted, batch.target_ids, self._logits, self._chunk)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden) * self._scale
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)


def _number(config: object, attribute: str | None) -> float | None:
    value = getattr(config, attribute, None) if attribute else None
    return None if value is None or not math.isfinite(value) else float(value)
