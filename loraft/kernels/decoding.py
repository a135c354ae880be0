"""What decoding does for each token: products of one row with large weights, and a cache that grows in place.

In bfloat16 some CPUs lay out W anew for each product `x Wᵀ`; for one row `W x` takes it as it lies: the same bits in
two thirds of the time. On others it takes longer, so both are tried once. For several rows the form that is as fast
rounds differently, and is left alone.
transformers' own cache of keys and values is copied as a whole with each token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from timeit import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from loraft.kernels.lora_linear import modules_of_adapted_parameters

TRIED, TIMES = (4096, 1024), 12
"""The weight that the two forms are tried on, `[out, in]`, and how often."""
CLEARLY = 0.85
"""What the one may take of the time of the other: a clear gain, so that every start chooses alike."""
LEAST_ROOM = 64
"""For how many tokens there is room at least, whenever a layer is copied."""


@contextmanager
def patch_decode_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the linear modules of a model that computes in `dtype` multiply faster, with the same results.

    Nothing changes in float32, nor modules of other classes, 4-bit ones among them. Within another one, or beside it,
    it leaves to that what is done already.
    """
    # The weight of these is not what lies in the module, but that with an adapter's update in it.
    parametrized = modules_of_adapted_parameters(model)
    linears = (module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module))
    modules = [module for module in linears if module not in parametrized and _gains(module, dtype)]
    for module in modules:
        bias = module.bias.to(dtype) if module.bias is not None else None
        # The instance's own, in front of its class's: hooks and peft's layers go on as before.
        module.forward = partial(_multiply, module.weight.to(dtype), bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _gains(module: nn.Linear, dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return False
    on_cpu = module.weight.device.type == "cpu"
    return module.weight.dtype != dtype or (dtype == torch.bfloat16 and on_cpu and as_it_lies_is_faster())


@cache
def as_it_lies_is_faster() -> bool:
    """Whether this CPU multiplies a bfloat16 weight with one row clearly faster as it lies."""
    weight, row = torch.ones(TRIED, dtype=torch.bfloat16), torch.ones(1, TRIED[1], dtype=torch.bfloat16)
    with torch.inference_mode():
        usual = min(repeat(lambda: linear(row, weight), number=1, repeat=TIMES))
        return min(repeat(lambda: torch.mv(weight, row[0]), number=1, repeat=TIMES)) < CLEARLY * usual


def _multiply(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """`[..., in]` with a weight `[out, in]` and a bias `[out]`: `[..., out]`."""
    inputs = inputs.to(weight.dtype)
    one_row = bias is None and inputs.numel() == weight.shape[1] and weight.device.type == "cpu"
    if one_row and as_it_lies_is_faster():
        return torch.mv(weight, inputs.flatten()).view(*inputs.shape[:-1], -1)
    return linear(inputs, weight, bias)


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


OF_CACHES = ("past_key_values", "cache_params")
"""What models call a cache of theirs."""


def read_on(model: PreTrainedModel, cache: Cache | None, **inputs: Any) -> Reading:
    """Let a model read on, what its forward takes; without a cache it makes one of its own.

    Raises:
        TypeError: It gives none that rows can be selected of.
    """
    takes = inspect.signature(model.forward).parameters
    name = next((name for name in OF_CACHES if name in takes), OF_CACHES[0])
    output = model(use_cache=True, **inputs, **({} if cache is None else {name: cache}))
    kept = next((value for name in OF_CACHES if (value := getattr(output, name, None)) is not None), cache)
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
