"""The modules of a model, as the choice of targets needs them: linear ones, sizes, tied and 4-bit weights.

This module knows torch modules, on the meta device too. It refuses to know peft and the config's words.
"""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from transformers import PreTrainedModel

from loraft.adapters.targets import Targets, select
from loraft.config.schema import LoraSection
from loraft.models.families import Family
from loraft.models.loading import linear_modules
from loraft.models.quantization import quantized_modules

__all__ = ["sized_modules", "targets_in", "tied_modules"]


def sized_modules(model: nn.Module) -> dict[str, int]:
    """Full name of each module that has parameters: how many, those of its children included."""
    sizes = {name: sum(weight.numel() for weight in module.parameters()) for name, module in model.named_modules()}
    return {name: size for name, size in sizes.items() if name and size}


def tied_modules(model: nn.Module) -> tuple[str, ...]:
    """The modules that share a weight with another, such as the embedding and the head."""
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            owners[id(weight)].append(name)
    return tuple(name for names in owners.values() if len(names) > 1 for name in names)


def targets_in(model: PreTrainedModel, family: Family, lora: LoraSection, *, quantized: bool) -> Targets:
    """Resolve the `lora` section against a model, whether its weights are loaded or not.

    Args:
        model: The base, before anything is attached to it; on the meta device too.
        family: Its row of the table of architectures.
        lora: The config's section.
        quantized: Whether its linear modules are, or will be, stored in 4 bits.

    Raises:
        AdapterError: With every name, layer or pattern that matches nothing or cannot be trained.
    """
    return select(
        linear_modules(model),
        family,
        lora,
        {stack: len(list(model.get_submodule(path).children())) for stack, path in family.stacks.items()},
        modules=sized_modules(model),
        tied=tied_modules(model),
        quantized=quantized_modules(model) if quantized else (),
    )
