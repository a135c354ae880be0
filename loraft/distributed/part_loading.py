"""A model whose matrices are in parts while it is loaded: a tensor is whole on a rank as long as it is read.

What stands in a module's place for a matrix has its shape, its dtype and its constants, and takes no memory; this
rank's part hangs on it. A layer is gathered when it is to be sharded, and so no rank ever holds the model.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from loraft.distributed.ranks import Ranks
from loraft.io.held_memory import give_back_at_once

PART = "_loraft_part"
"""The attribute of a stand-in that has this rank's part of its numbers, one behind the other."""
FROM_FILES = "_is_hf_initialized"
"""The attribute by which transformers knows that a parameter was loaded."""
PAGES = 2**16
"""Tensors of so many bytes are given back to the system as they are freed."""
ONE_AFTER_ANOTHER = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' switch without which threads read ahead, and convert the whole model."""


@contextmanager
def loading_in_parts(ranks: Ranks) -> Iterator[None]:
    """Leave of each matrix that a module is given from the files this rank's part.

    What the files lack, a classifier's head, is whole: it is drawn at random in its place.
    """

    def take_part(_module: nn.Module, _name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        if weight is None or weight.is_meta or weight.dim() < 2 or hasattr(weight, PART):
            return weight
        if not getattr(weight, FROM_FILES, False):
            return weight
        return _stand_in(weight, ranks)

    give_back_at_once(PAGES)  # a heap that keeps what was freed would grow to the model's size
    before, handle = os.environ.get(ONE_AFTER_ANOTHER), register_module_parameter_registration_hook(take_part)  # type: ignore[arg-type]  # it may give another one
    os.environ[ONE_AFTER_ANOTHER] = "1"
    try:
        yield
    finally:
        handle.remove()
        os.environ.pop(ONE_AFTER_ANOTHER)
        if before is not None:
            os.environ[ONE_AFTER_ANOTHER] = before


def _stand_in(weight: nn.Parameter, ranks: Ranks) -> nn.Parameter:
    """A parameter like `weight` that holds nothing; whoever reads it before it is gathered gets NaN, or zeros."""
    nothing = torch.full((), float("nan") if weight.is_floating_point() else 0, dtype=weight.dtype)
    empty = nothing.to(weight.device).expand(weight.shape)
    made: Any = torch.Tensor._make_subclass(type(weight), empty, weight.requires_grad)
    vars(made).update(vars(weight))
    flat, size = weight.data.reshape(-1), -(-weight.numel() // ranks.world)
    part = flat.new_zeros(size)
    own = flat[ranks.rank * size : (ranks.rank + 1) * size]
    part[: len(own)] = own
    setattr(made, PART, part)
    return made  # type: ignore[no-any-return]


def gather_in(module: nn.Module, ranks: Ranks, besides: Sequence[nn.Module] = ()) -> None:
    """Give a module its matrices whole, where they are in parts; all ranks do it together. `besides` stay as they are.

    What several modules share they share again.
    """
    left = {id(inner) for other in besides for inner in other.modules()}
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for inner in module.modules():
        for name, weight in inner._parameters.items() if id(inner) not in left else ():
            if weight is None or not hasattr(weight, PART):
                continue
            if weight not in whole:
                whole[weight] = _gathered(weight, ranks)
            inner._parameters[name] = whole[weight]
    for weight in whole:
        delattr(weight, PART)


@contextmanager
def whole_meanwhile(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Have a module's matrices whole while this is entered, which all ranks do together; they are not changed."""
    whole = {weight: _gathered(weight, ranks) for weight in module.parameters() if hasattr(weight, PART)}
    with in_place_of(module, whole):
        yield


@contextmanager
def in_place_of(model: nn.Module, others: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """Have other parameters in the place of those of a model, into which a state can be loaded.

    After that FSDP would look for parts in what was loaded into.
    """
    held = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight in others
    ]
    looking = {module: module._load_state_dict_post_hooks for module, _, _ in held}
    for module, name, weight in held:
        module._parameters[name] = others[weight]
        module._load_state_dict_post_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, name, weight in held:
            module._parameters[name] = weight
            module._load_state_dict_post_hooks = looking[module]


def _gathered(weight: nn.Parameter, ranks: Ranks) -> nn.Parameter:
    part: Tensor = getattr(weight, PART)
    flat = part.new_empty(ranks.world * len(part))
    dist.all_gather(list(flat.chunk(ranks.world)), part)
    data = flat[: weight.numel()].view(weight.shape)
    made: Any = torch.Tensor._make_subclass(type(weight), data, weight.requires_grad)
    vars(made).update({name: value for name, value in vars(weight).items() if name != PART})
    return made  # type: ignore[no-any-return]
