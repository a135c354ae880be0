"""Where in a model numbers stop being finite: in which weight, in parts perhaps, or after which module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from loraft.distributed.sharding import own_part
from loraft.kernels.linear_weights import unpacked
from loraft.kernels.packed_experts import PackedExperts
from loraft.models.load_model import LoadedModel
from loraft.tasks.batches import Batch

Weight = tuple[str, bool]
"""The name of a parameter, and whether it is trained."""


def first_weight(loaded: LoadedModel) -> Weight | None:
    """The first parameter that is not finite: its name as the model's files have it, and whether it is trained."""
    for prefix, module in loaded.model.named_modules():
        if loaded.stream is not None:
            loaded.stream.bring(module)
        for name, parameter in module.named_parameters(recurse=False):
            packed = not parameter.is_floating_point() and isinstance(module, nn.Linear) and name == "weight"
            held = own_part(whole := parameter.data)
            if packed and held is whole:  # a part is bytes
                held = unpacked(module)
            if isinstance(module, PackedExperts) and name in module.packed:
                held = module.packed[name].value()
            if not held.isfinite().all():
                return f"{prefix}.{name}".replace(".base_layer", ""), parameter.requires_grad
    return None


def first_output(loss: nn.Module, batches: Iterator[Batch]) -> str | None:
    """The name of the first module of the model in `loss` whose output for the batches is not finite."""
    found: list[str] = []

    def look(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if not found and any(not tensor.isfinite().all() for tensor in _tensors(output)):
            found.append(name)

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in loss.get_submodule("model").named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(partial(look, name)))
        for batch in batches:
            loss(batch)
            if found:
                return found[0].replace(".base_layer", "")
    return None


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
