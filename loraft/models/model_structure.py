"""How a model is built: its row of the table of architectures, its layers, and which weights its modules own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.errors import ModelError
from loraft.models.hf_config import is_used_otherwise
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
    if row is None or is_used_otherwise(model.config):
        return by_structure(model)
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


def by_structure(model: PreTrainedModel) -> ModelSpec:
    """A row for a model that the table lacks: its largest lists of layers that hold linear modules.

    Of a model that reads images or sound too, only the part that reads text is looked at.

    Raises:
        ModelError: No list of layers is found.
    """
    stack, prefix = _text_part(model)
    lists = {f"{prefix}{name}": size for name, size in _lists_of_layers(stack).items()}
    found = {name: size for name, size in lists.items() if not OTHER_SENSES.search(name)} or lists
    largest = sorted(found, key=lambda name: -found[name])
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
    paths = [each for each in (encoder, path) if each is not None]
    attention, mlp, routers = _parts_of_layers(model, paths)
    experts = _experts(model, path)
    return ModelSpec(
        model_type, path, attention, mlp, kind, encoder, classifier=(), experts=experts, routers=routers, packs=False,
        same_input=(),
    )  # fmt: skip


def _text_part(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The model itself, or its language model where it has one beside others; and the path before the names in it."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("language_model", "text_model") and isinstance(module, PreTrainedModel):
            return module, f"{name}."
    return model, ""


def _lists_of_layers(model: nn.Module) -> dict[str, int]:
    """The outermost lists of modules that all hold linear modules, and how many numbers each has."""
    sizes = sized_modules(model)
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside_another and all(map(linear_modules, module)):
            found[name] = sizes.get(name, 0)
    return {name: size for name, size in found.items() if size}


OTHER_SENSES = re.compile(r"vision|visual|audio|image|speech|tower|embed_tokens")
"""Words in the paths of layers that read images and sound."""
OF_ATTENTION = re.compile(r"attn|attention")
OF_MIXERS = re.compile(r"mamba|mixer|ssm|conv|recurrent|rglru|time_mix|linear_attn")
"""Words in the paths of modules that mix tokens in another way than attention: neither it nor the feed-forward part."""
ROUTERS = re.compile(r"(^|\.)(gate|router|shared_expert_gate|router\.\w+|gate\.\w+)$")


def _parts_of_layers(
    model: nn.Module, paths: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The linear modules inside the layers by what they belong to: attention, feed-forward part, routers of experts."""
    inside: dict[str, tuple[int, int]] = {}
    for path in paths:
        for layer in model.get_submodule(path).children():
            inside |= linear_modules(layer)
    count = experts_in(getattr(model, "config", None))
    routers = tuple(name for name, (_, out) in inside.items() if ROUTERS.search(name) and out in (1, count))
    rest = [name for name in inside if name not in routers and not OF_MIXERS.search(name)]
    attention = tuple(name for name in rest if OF_ATTENTION.search(name))
    return attention, tuple(name for name in rest if name not in attention), routers


def experts_in(config: PreTrainedConfig | None) -> int | None:
    """How many experts a mixture has; None where a config names none."""
    if config is None:
        return None
    text = config.get_text_config()
    counts = (getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return next((count for count in counts if isinstance(count, int) and count > 1), None)


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
