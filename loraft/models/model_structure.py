"""How a model is built: its row of the table of architectures, its layers, and which weights its modules own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from loraft.errors import ModelError
from loraft.models.modules import linear_modules
from loraft.models.registry import FAMILIES, Kind, ModelSpec


def family_in(model: PreTrainedModel) -> ModelSpec:
    """The row of the table for this model, with its layers where this class of it has them.

    The table says where the model with its head has them: a bare model lacks the first part of that path. A family
    that the table does not have is known by its structure alone: where its layers are, and not what they are made of.

    Raises:
        ModelError: No list of layers is found.
    """
    row = FAMILIES.get(model.config.model_type)
    if row is None:
        return _by_structure(model)
    here = {name for name, _ in model.named_modules()}
    paths = {path: path if path in here else path.partition(".")[2] for path in row.stacks.values()}
    for path in paths.values():
        if path not in here or not list(model.get_submodule(path).children()):
            raise ModelError(f"a {type(model).__name__} of this config has no layers at {path}")
    encoder = paths[row.encoder_path] if row.encoder_path is not None else None
    return replace(row, layers_path=paths[row.layers_path], encoder_path=encoder)


def depths(model: nn.Module, family: ModelSpec) -> Mapping[str, int]:
    """How many layers each stack of the model has."""
    return {stack: len(list(model.get_submodule(path).children())) for stack, path in family.stacks.items()}


def _by_structure(model: PreTrainedModel) -> ModelSpec:
    """A row for a model that the table lacks: its largest lists of layers that hold linear modules."""
    sizes = sized_modules(model)
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside_another and all(map(linear_modules, module)):
            found[name] = sizes.get(name, 0)
    largest = sorted((name for name, size in found.items() if size), key=lambda name: -found[name])
    model_type = model.config.model_type
    if not largest:
        raise ModelError(f"model type {model_type!r} is not in loraft's table, and its structure shows no layers")
    encoder = next((name for name in largest if "encoder" in name), None)
    decoder = next((name for name in largest if "decoder" in name), None)
    kind: Kind = "decoder" if model.can_generate() or "ForCausalLM" in type(model).__name__ else "encoder"
    if model.config.is_encoder_decoder and encoder and decoder:
        kind, path = "encoder_decoder", decoder
    else:
        encoder, path = None, largest[0]
    return ModelSpec(model_type, path, (), (), kind, encoder, experts=_experts(model, path), packs=False)


def _experts(model: nn.Module, path: str) -> str | None:
    """Where the layers at `path` keep experts: a module with a matrix for each of them in one tensor."""
    for layer in model.get_submodule(path).children():
        for name, weight in layer.named_parameters():
            owner = name.rpartition(".")[0]
            if weight.dim() == 3 and "expert" in owner:
                return owner
    return None


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
