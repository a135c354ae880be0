"""What a model has read of some rows, and the logits of what comes next.

This module knows how a model is run while it generates: its cache, its masks, its attention and its dtype. It
refuses to know tokenizers, sampling and when to stop.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from loraft.models.attention import ROWS

__all__ = ["Context", "learned_positions", "ordinary_attention", "pad_left", "wrapped_model"]


class _Wrapper(Protocol):
    def get_base_model(self) -> nn.Module: ...


class Context:
    """What a model has read of one or several rows.

    With a cache each token is read once, and its keys and values are kept. Without one every `read` reads all
    rows from their start: slower with each token, and the same logits but for rounding.

    One that `rewinds` can go back to any point of what it has read. It then keeps what has left a sliding window too:
    masks hide it, so the logits are the same.

    The model must be in `ordinary_attention` while it reads.
    """

    def __init__(self, model: nn.Module, *, use_cache: bool = True, rewinds: bool = False) -> None:
        self._model = wrapped_model(model)
        self._cache = DynamicCache(config=None if rewinds else self._model.config) if use_cache else None
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        parameters = inspect.signature(self._model.forward).parameters
        # A family without position ids (ALiBi) takes its positions from the mask.
        self._takes_positions = "position_ids" in parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._model.device

    @property
    def length(self) -> int:
        """How many tokens of each row were read, padding included."""
        return 0 if self._ids is None else self._ids.shape[1]

    @property
    def first_row(self) -> list[int]:
        """The tokens of the first row that were read."""
        return [] if self._ids is None else self._ids[0].tolist()

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read on, the same number of tokens in every row.

        Args:
            ids: `[rows, time]`: at first the prompts, then what comes after what was read.
            mask: `[rows, time]`, 0 where a row is padded on its left; only with the first read, and None where no
                row is padded.

        Returns:
            `[rows, vocab]`, float32: the logits of the token after the last one read.
        """
        read_before = self.length
        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], dim=1)
        if self._mask is not None:
            mask = torch.cat([self._mask, self._mask.new_ones(ids.shape)], dim=1)
        self._mask = mask
        start = read_before if self._cache is not None else 0
        positions = {}
        if self._mask is not None and self._takes_positions:
            positions["position_ids"] = (self._mask.cumsum(1) - 1).clamp_(min=0)[:, start:]
        with _products_in_model_dtype(self._model):
            output = self._model(
                input_ids=self._ids[:, start:],
                attention_mask=self._mask,
                past_key_values=self._cache,
                use_cache=self._cache is not None,
                **positions,
                **self._last_only,
            )
        return cast("Tensor", output.logits[:, -1].float())

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        kept = torch.tensor(rows, device=self.device)
        if self._cache is not None:
            self._cache.batch_select_indices(kept)
        self._ids = self._ids[kept] if self._ids is not None else None
        self._mask = self._mask[kept] if self._mask is not None else None

    @torch.inference_mode()
    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens of each row; the context must be one that `rewinds`."""
        if self._cache is not None:
            self._cache.crop(length - self.length)
        self._ids = self._ids[:, :length] if self._ids is not None else None
        self._mask = self._mask[:, :length] if self._mask is not None else None


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows of different lengths as one block that ends together.

    Returns:
        The ids `[rows, time]` and the mask `[rows, time]`, 1 at tokens. No mask where no row is padded: attention
        is faster without.
    """
    longest = max(map(len, rows))
    # Any id does as padding, since the mask hides it; 0 is one that every vocabulary has.
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if min(map(len, rows)) == longest:
        return ids, None
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@contextmanager
def ordinary_attention(model: nn.Module) -> Iterator[None]:
    """The model as it generates; afterwards as it was.

    Packed rows' attention keeps no cache, so an ordinary one takes its place. Every module is in eval mode: no
    dropout, and no gradient checkpointing, which acts in training mode only and would forbid the cache.
    """
    base = wrapped_model(model)
    attention = base.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    model.eval()
    if attention == ROWS:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    try:
        yield
    finally:
        if attention == ROWS:
            base.set_attn_implementation(attention)
        # One by one: `model.train()` would also wake modules that were in eval mode before.
        for module in training:
            module.training = True


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a model can tell apart: the rows of its position table, None where it has none.

    A table is told by its size, the configured number of positions, for which some families (OPT) hold a few rows
    more. Rotary and ALiBi models have no table.
    """
    base = wrapped_model(model)
    configured = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(configured, int):
        return None
    vocabulary = set(base.get_input_embeddings().modules())
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding) and module not in vocabulary]
    return configured if any(0 <= table.num_embeddings - configured <= 2 for table in tables) else None


def wrapped_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, with its adapters in place, whatever is wrapped around it."""
    if isinstance(model, PreTrainedModel):
        return model
    # peft puts its layers into the model that it wraps, so the inner model alone is the adapted one.
    return cast("PreTrainedModel", cast("_Wrapper", model).get_base_model())


def _products_in_model_dtype(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Adapters are float32 on a base of 16 bits: products run in the base's dtype, as in training.

    A float32 model stays in whatever autocast the caller has chosen.
    """
    return nullcontext() if model.dtype == torch.float32 else torch.autocast(model.device.type, dtype=model.dtype)
