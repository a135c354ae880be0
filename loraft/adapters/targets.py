"""Which modules an adapter goes to: names and layers, resolved to full module names and counted.

Nothing here is silent: a name, a layer or a pattern that matches nothing is an error that says what there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from loraft.adapters.rank_patterns import patterned, shared_experts, trained_whole, unknown_parts, unmatched_target
from loraft.config.sections import LoraSection, StackLayers
from loraft.errors import AdapterError, ModelError, Problem
from loraft.models.modules import linear_modules, matches
from loraft.models.quantize import quantized_modules
from loraft.models.registry import FAMILIES, Kind, ModelSpec

NOTHING: Mapping[str, int] = MappingProxyType({})
Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class ModuleCount:
    """How many modules, and how many parameters train there."""

    modules: int
    parameters: int


@dataclass(frozen=True)
class TargetModules:
    """What an adapter trains, by full module name.

    Attributes:
        modules: The adapted linear modules, in the model's order.
        layers: The transformer layers that they lie in, counted within each stack.
        layers_by_stack: Those of each stack, `encoder` and `decoder`, that has any.
        ranks: The rank of each module, patterns applied.
        alphas: The alpha of each module, patterns applied.
        parameters: Parameters of the low-rank updates: r · (in + out) a module, and `out` more with DoRA.
        by_name: Counts by the module's place in its layer, such as `self_attn.q_proj`.
        by_layer: Counts by layer; of a model with two stacks both count.
        by_rank_pattern: How many modules each pattern of `rank_pattern` decides.
        by_alpha_pattern: How many modules each pattern of `alpha_pattern` decides.
        saved: The modules that are trained whole (`modules_to_save`).
        saved_parameters: Their parameters.
    """

    modules: tuple[str, ...]
    layers: tuple[int, ...]
    layers_by_stack: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    parameters: int
    by_name: Mapping[str, ModuleCount]
    by_layer: Mapping[int, ModuleCount]
    by_rank_pattern: Mapping[str, int]
    by_alpha_pattern: Mapping[str, int]
    saved: tuple[str, ...]
    saved_parameters: int

    @property
    def trainable_parameters(self) -> int:
        """Everything that training changes."""
        return self.parameters + self.saved_parameters


@dataclass(frozen=True)
class _Place:
    """A linear module inside a transformer layer."""

    name: str
    stack: str
    layer: int
    inside: str
    shape: tuple[int, int]


def parse_layers(spec: str | Sequence[int], num_layers: int, owner: str = "the model") -> tuple[int, ...]:
    """The layers that `lora.layers` means, in ascending order.

    Args:
        spec: `all`, `first:N`, `last:N`, `middle:N`, a range like `4-11` (both ends in), or a list of indices.
        num_layers: How many layers there are; they are numbered from 0.
        owner: Whose layers they are, for the message.

    Raises:
        AdapterError: If a layer is asked for that the model does not have.
    """
    if not isinstance(spec, str):
        return _listed_layers(spec, num_layers, owner)
    if spec == "all":
        return tuple(range(num_layers))
    word, _, number = spec.partition(":")
    if number:
        count = int(number)
        if count > num_layers:
            raise _no_such_layers(f"{spec} asks for {count} layers", num_layers, owner)
        start = {"first": 0, "last": num_layers - count, "middle": (num_layers - count) // 2}[word]
        return tuple(range(start, start + count))
    first, last = (int(end) for end in spec.split("-"))
    if first > last:
        raise AdapterError(f"the range {spec} runs backwards", key="lora.layers", remedy=f"Write {last}-{first}.")
    if last >= num_layers:
        raise _no_such_layers(f"{spec} ends at layer {last}", num_layers, owner)
    return tuple(range(first, last + 1))


def _listed_layers(indices: Sequence[int], num_layers: int, owner: str) -> tuple[int, ...]:
    if not indices:
        raise AdapterError("the list is empty", key="lora.layers", remedy="Write all, or the layers to adapt.")
    absent = sorted({index for index in indices if not 0 <= index < num_layers})
    if absent:
        raise _no_such_layers(f"layer {', '.join(map(str, absent))} does not exist", num_layers, owner)
    return tuple(sorted(set(indices)))


def _no_such_layers(what: str, num_layers: int, owner: str) -> AdapterError:
    return AdapterError(
        f"{what}, and {owner} has {num_layers} layers",
        key="lora.layers",
        remedy=f"Layers are numbered 0 to {num_layers - 1}.",
    )


def select(
    linear: Mapping[str, tuple[int, int]],
    family: ModelSpec,
    lora: LoraSection,
    num_layers: int | Mapping[str, int],
    *,
    modules: Mapping[str, int] = NOTHING,
    tied: Collection[str] = (),
    quantized: Collection[str] = (),
) -> TargetModules:
    """Resolve the `lora` section against the modules of one model.

    Args:
        linear: Full name of each linear module: its (in, out) features.
        family: Where this architecture keeps its layers, and the names inside them.
        lora: The config's section.
        num_layers: How many transformer layers the model has; of a model with two stacks by the stack's name.
        modules: Full name of each module that has parameters: how many. Needed for `modules_to_save`.
        tied: The modules that share one weight, such as the embedding and the head.
        quantized: The modules whose weights are 4-bit, which cannot be trained whole.

    Raises:
        AdapterError: With every name, layer or pattern that matches nothing or cannot be trained.
    """
    layers = _layers_by_stack(lora.layers, family, num_layers)
    places = tuple(_places(linear, family))
    chosen, problems = _chosen(places, family, lora, layers, linear, modules)
    adapted = [place.name for place in chosen]
    saved, refused = trained_whole(lora.modules_to_save, modules, adapted, tied, quantized)
    problems += refused
    ranks, rank_counts, rank_problems = patterned(adapted, lora.rank_pattern, lora.r, "lora.rank_pattern")
    alphas, alpha_counts, alpha_problems = patterned(adapted, lora.alpha_pattern, lora.alpha, "lora.alpha_pattern")
    problems += rank_problems + alpha_problems
    if problems:
        raise AdapterError.several(problems)
    sizes = {place: _parameters(place.shape, ranks[place.name], lora.use_dora) for place in chosen}
    return TargetModules(
        modules=tuple(adapted),
        layers=tuple(sorted({place.layer for place in chosen})),
        layers_by_stack=_by_stack(chosen, family),
        ranks=ranks,
        alphas=alphas,
        parameters=sum(sizes.values()),
        by_name=_counted((place.inside, size) for place, size in sizes.items()),
        by_layer=_counted((place.layer, size) for place, size in sizes.items()),
        by_rank_pattern=rank_counts,
        by_alpha_pattern=alpha_counts,
        saved=saved,
        saved_parameters=sum(modules[name] for name in saved),
    )


def _by_stack(places: Sequence[_Place], family: ModelSpec) -> Mapping[str, tuple[int, ...]]:
    """The layers of each stack that has any of the places."""
    found = {stack: tuple(sorted({place.layer for place in places if place.stack == stack})) for stack in family.stacks}
    return {stack: layers for stack, layers in found.items() if layers}


def _parameters(shape: tuple[int, int], rank: int, use_dora: bool) -> int:
    """A [r, in] and B [out, r]; DoRA learns a magnitude for each output besides."""
    features_in, features_out = shape
    return rank * (features_in + features_out) + (features_out if use_dora else 0)


def _counted(sizes: Iterable[tuple[Key, int]]) -> dict[Key, ModuleCount]:
    counts: dict[Key, ModuleCount] = {}
    for key, size in sizes:
        before = counts.get(key, ModuleCount(0, 0))
        counts[key] = ModuleCount(before.modules + 1, before.parameters + size)
    return counts


def _layers_by_stack(
    spec: str | Sequence[int] | StackLayers, family: ModelSpec, num_layers: int | Mapping[str, int]
) -> Mapping[str, tuple[int, ...]]:
    """The layers that `lora.layers` means in each stack: `last:2` is the last two of each."""
    specs = _spec_by_stack(spec, family)
    if isinstance(num_layers, int):
        num_layers = dict.fromkeys(family.stacks, num_layers)
    owners = {stack: f"the {stack}" if len(family.stacks) > 1 else "the model" for stack in family.stacks}
    return {
        stack: () if specs[stack] is None else parse_layers(specs[stack] or (), num_layers[stack], owner)
        for stack, owner in owners.items()
    }


def _spec_by_stack(
    spec: str | Sequence[int] | StackLayers, family: ModelSpec
) -> Mapping[str, str | Sequence[int] | None]:
    """What is asked of each stack; None leaves it without an adapter."""
    if not isinstance(spec, StackLayers):
        return dict.fromkeys(family.stacks, spec)
    asked = {stack: layers for stack, layers in spec if layers is not None}
    if unknown := [stack for stack in asked if stack not in family.stacks]:
        stacks = " and ".join(family.stacks)
        raise AdapterError(
            f"{' and '.join(unknown)}: {family.model_type} has no such stack, its layers are the {stacks}'s",
            key="lora.layers", remedy="Write the layers without naming a stack." if len(family.stacks) == 1 else None,
        )  # fmt: skip
    if not asked:
        raise AdapterError("names no layers of either stack", key="lora.layers", remedy="Write all, or name a stack.")
    return {stack: asked.get(stack) for stack in family.stacks}


def _places(linear: Mapping[str, tuple[int, int]], family: ModelSpec) -> Iterator[_Place]:
    """The linear modules inside the layers: neither the head nor anything else around the stack."""
    prefixes = {stack: f"{path}." for stack, path in family.stacks.items()}
    for name, shape in linear.items():
        for stack, prefix in prefixes.items():
            if name.startswith(prefix):
                index, _, inside = name.removeprefix(prefix).partition(".")
                yield _Place(name, stack, int(index), inside, shape)


def _chosen(
    places: Sequence[_Place],
    family: ModelSpec,
    lora: LoraSection,
    layers: Mapping[str, Collection[int]],
    linear: Collection[str],
    modules: Collection[str],
) -> tuple[list[_Place], list[Problem]]:
    within = [place for place in places if place.layer in layers[place.stack]]
    wanted = lora.target_modules
    if family.experts and wanted in ("all-linear", "mlp"):
        return [], [shared_experts(family.experts, str(wanted))]
    if wanted == "all-linear":
        return within, []
    if isinstance(wanted, str):
        parts = family.attention if wanted == "attention" else family.mlp
        chosen = [place for place in within if _part(place, family) == wanted]
        return chosen, [] if parts else [unknown_parts(family.model_type, wanted, {place.inside for place in places})]
    unmatched = [name for name in wanted if not any(matches(place.name, name) for place in within)]
    located = {place.name: (place.stack, place.layer, place.inside) for place in places}
    problems = [unmatched_target(name, located, linear, modules) for name in unmatched]
    return [place for place in within if any(matches(place.name, name) for name in wanted)], problems


def _part(place: _Place, family: ModelSpec) -> str:
    """`attention` where the module is one of the attention's, and `mlp` otherwise: both are all there is."""
    if any(matches(place.inside, part) for part in family.attention):
        return "attention"
    return "mlp" if any(matches(place.inside, part) for part in family.mlp) else ""


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
    """A row for a model that the table does not have: its largest lists of layers that hold linear modules."""
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
    if model.config.is_encoder_decoder and encoder and decoder:
        return ModelSpec(
            model_type, decoder, (), (), "encoder_decoder", encoder, experts=_experts(model, decoder), packs=False
        )
    kind: Kind = "decoder" if model.can_generate() or "ForCausalLM" in type(model).__name__ else "encoder"
    return ModelSpec(model_type, largest[0], (), (), kind, experts=_experts(model, largest[0]), packs=False)


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


def targets_in(
    model: PreTrainedModel, family: ModelSpec, lora: LoraSection, *, quantized: bool, head: Sequence[str] = ()
) -> TargetModules:
    """Resolve the `lora` section against a model, whether its weights are loaded or not.

    Args:
        model: The base, before anything is attached to it; on the meta device too.
        family: Its row of the table of architectures.
        lora: The config's section.
        quantized: Whether its linear modules are, or will be, stored in 4 bits.
        head: The modules of a classification head, which are trained whole without being named.

    Raises:
        AdapterError: With every name, layer or pattern that matches nothing or cannot be trained.
    """
    named = tuple(name for name in head if name not in lora.modules_to_save)
    return select(
        linear_modules(model),
        family,
        lora.model_copy(update={"modules_to_save": (*lora.modules_to_save, *named)}),
        depths(model, family),
        modules=sized_modules(model),
        tied=tied_modules(model),
        quantized=quantized_modules(model) if quantized else (),
    )
