"""What decoding keeps for each token: keys and values, in a cache that grows in place.

transformers' own cache is copied as a whole with each token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 64
"""For how many tokens there is room at least, whenever a layer is copied."""


class PreallocatedKVLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, the first part of two larger tensors."""

    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens, and give all there are: `[rows, heads, time, head_size]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys, self._key_room = _append(self.keys, key_states, self._key_room)
        self.values, self._value_room = _append(self.values, value_states, self._value_room)
        return self.keys, self.values


def _append(held: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """All the tokens, and the larger tensor that they are the first part of.

    What is held may have been cut short since, and is still where it was; or rows were selected, and it is elsewhere.
    """
    length = held.shape[-2] if held.numel() else 0
    stop = length + new.shape[-2]
    if room is None or room.shape[-2] < stop or room.data_ptr() != held.data_ptr() or room.shape[0] != new.shape[0]:
        room = new.new_empty(*new.shape[:-2], stop + max(LEAST_ROOM, stop // 4), new.shape[-1])
        if length:
            room[..., :length, :] = held
    room[..., length:stop, :] = new
    return room[..., :stop, :], room


@dataclass(frozen=True)
class Reading:
    """What a model gave for some tokens, `[rows, time, vocab]`, and what it keeps of all that it has read."""

    logits: Tensor
    cache: Cache | None


OF_CACHES = ("cache", "past_key_values", "cache_params")
"""What models call a cache of theirs: all of them by the first since transformers 5.24."""


def name_of_cache(model: nn.Module) -> str:
    """What the forward of a model calls its cache."""
    return _named_by(type(model).forward)


@cache
def _named_by(forward: Callable[..., Any]) -> str:
    takes = inspect.signature(forward).parameters
    return next((name for name in OF_CACHES if name in takes), "past_key_values")


def read_on(model: PreTrainedModel, held: Cache | None, **inputs: Any) -> Reading:
    """Let a model read on, what its forward takes; without a cache it makes one of its own.

    Raises:
        TypeError: It gives none that rows can be selected of.
    """
    output = model(use_cache=True, **inputs, **({} if held is None else {name_of_cache(model): held}))
    kept = next((value for name in OF_CACHES if (value := getattr(output, name, None)) is not None), held)
    if not isinstance(kept, Cache):
        raise TypeError(f"a {type(model).__name__} gives no cache")
    return Reading(output.logits, kept)


def new_cache(model: PreTrainedModel, *, rewinds: bool = False) -> DynamicCache | EncoderDecoderCache:
    """An empty cache for a model; sliding windows and other kinds of layers have transformers' own.

    One that `rewinds` keeps what has left a sliding window too, so that it can be cut back to any length.
    """
    if model.config.is_encoder_decoder:
        # Without the config, which counts the encoder's layers: these caches grow by what the decoder uses.
        said = DynamicCache()
        said.layer_class_to_replicate = PreallocatedKVLayer
        return EncoderDecoderCache(said, DynamicCache())
    grown = DynamicCache(config=None if rewinds else model.config)
    for place, layer in enumerate(grown.layers):
        if type(layer) is DynamicLayer:
            grown.layers[place] = PreallocatedKVLayer()  # type: ignore[no-untyped-call]
    if grown.layer_class_to_replicate is DynamicLayer:
        grown.layer_class_to_replicate = PreallocatedKVLayer
    return grown
