"""Which linear modules and experts of an architecture an adapter learns something on: what its outputs come through."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.models.model_structure import stacks_experts
from loraft.models.modules import linear_modules
from loraft.models.registry import ModelSpec

PASSES = 2
"""In training some architectures leave out whole layers by chance."""


def unreached(model: PreTrainedModel, spec: ModelSpec, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The linear modules that give no gradient and the experts that get none, as paths inside a layer.

    Cross attention of a decoder alone, indexers that choose which tokens are attended to, parts that read layouts or
    entities, experts for images, weights that are read past their module: what an adapter adds there changes nothing
    that is learned.
    Experts side by side count as one: not each of them sees a token.

    Args:
        model: A tiny copy of the architecture.
        spec: Where it keeps its layers.
        given: What it reads, `[1, time]` each.
    """
    inside, experts = dict(_inside_layers(model, spec)), dict(_stacked_experts(model, spec))
    changes: dict[str, list[Tensor]] = {}

    def changed(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            changes.setdefault(name, []).append(torch.zeros_like(output, requires_grad=True))
            return output + changes[name][-1]

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(changed(name)) for name in inside]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for seed in range(PASSES):
                torch.manual_seed(seed)
                model.train()(**given).logits.square().sum().backward()
        learned = {path for name, path in experts.items() if _is_learned(model.get_parameter(name))}
    finally:
        for each in hooks:
            each.remove()
        model.train(False)
        model.zero_grad()
    found = {_counted(inside[name]) for name, each in changes.items() if any(_is_learned(one) for one in each)}
    modules = (path for path in inside.values() if _counted(path) not in found)
    return tuple(dict.fromkeys([*modules, *(path for path in experts.values() if path not in learned)]))


def _inside_layers(model: PreTrainedModel, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """The full name of each linear module in the layers, and its path inside its layer."""
    for path in spec.stacks.values():
        for layer, module in model.get_submodule(path).named_children():
            for name in linear_modules(module):
                yield f"{path}.{layer}.{name}", name


def _stacked_experts(model: PreTrainedModel, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """The full name of each tensor in the layers that holds all experts, and its path inside its layer."""
    for path in spec.stacks.values():
        for layer, module in model.get_submodule(path).named_children():
            for name, weight in module.named_parameters():
                if stacks_experts(name, weight.shape):
                    yield f"{path}.{layer}.{name}", name


def _counted(path: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", path)


def _is_learned(change: Tensor) -> bool:
    return change.grad is not None and bool(change.grad.any())
