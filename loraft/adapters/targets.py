"""Which modules an adapter goes to: names and layers, resolved to full module names and counted.

Nothing here is silent: a name, a layer or a pattern that matches nothing is an error that says what there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from transformers import PreTrainedModel

from loraft.adapters.adapter_config import patterned
from loraft.adapters.extra_targets import (
    AdaptedWeight,
    Shapes,
    beyond_the_weights,
    named_parameters,
    not_trainable,
    trained_biases,
    with_experts,
)
from loraft.adapters.layer_choice import layers_by_stack
from loraft.adapters.left_by_peft import adaptable_modules, unread_by_peft
from loraft.adapters.token_rows import Rows, token_rows_in
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, Problem
from loraft.models.model_structure import depths, expert_tensors, sized_modules, tables_of, tied_modules
from loraft.models.modules import linear_modules, matches, nearest
from loraft.models.registry import LayerPlace, ModelSpec, place_in

NOTHING: Mapping[str, int] = MappingProxyType({})
KEY = "lora.target_modules"
NAMED = 3
"""The most modules that a note names."""


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
        layers_by_stack: The transformer layers that they and `weights` lie in, of each stack that has any.
        ranks: The rank of each module, patterns applied; so are the alphas.
        by_name: Counts by the module's place in its layer, such as `self_attn.q_proj`.
        by_pattern: How many modules each pattern of `rank_pattern` and `alpha_pattern` decides.
        saved: The modules that are trained whole (`modules_to_save`).
        weights: The parameters that are adapted by themselves (`target_parameters`).
        biases: The biases of the base that are trained, and their sizes.
        rows: The modules of which rows are trained by themselves, those of new tokens, and which rows.
    """

    modules: tuple[str, ...]
    layers_by_stack: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    by_name: Mapping[str, ModuleCount]
    by_pattern: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    saved_parameters: int = 0
    weights: tuple[AdaptedWeight, ...] = ()
    biases: Mapping[str, int] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    row_parameters: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that anything is adapted in, counted within each stack."""
        return tuple(sorted({layer for layers in self.layers_by_stack.values() for layer in layers}))

    @property
    def parameters(self) -> int:
        """Parameters of the modules' low-rank updates: r · (in + out) a module, and `out` more with DoRA."""
        return sum(count.parameters for count in self.by_name.values())

    @property
    def trainable_parameters(self) -> int:
        """Everything that training changes."""
        of_weights = sum(weight.parameters for weight in self.weights)
        besides = self.saved_parameters + sum(self.biases.values()) + self.row_parameters
        return self.parameters + of_weights + besides


Places = Mapping[str, LayerPlace]
"""Where linear modules lie, by their full names."""


def select(
    linear: Mapping[str, tuple[int, int]],
    family: ModelSpec,
    lora: LoraSection,
    num_layers: Mapping[str, int],
    *,
    modules: Mapping[str, int] = NOTHING,
    tied: Collection[str] = (),
    quantized: Collection[str] = (),
    shapes: Shapes = MappingProxyType({}),
) -> TargetModules:
    """Resolve the `lora` section against the modules of one model.

    By full names, `linear` has the (in, out) features of each linear module, `modules` how many parameters each module
    has that has any, and `shapes` the sizes of each parameter. `num_layers` says how many layers each stack has, `tied`
    which modules share one weight, such as embedding and head, and `quantized` which cannot be trained whole.

    Raises:
        AdapterError: With every name, layer or pattern that matches nothing or cannot be trained.
    """
    layers = layers_by_stack(lora.layers, family, num_layers)
    # Neither the head nor anything else around the stack is adapted.
    places = {name: place for name in linear if (place := place_in(family.stacks, name)).layer >= 0}
    problems: list[Problem] = []
    adapted = _chosen(places, family, lora, layers, linear, modules, problems)
    problems += not_trainable(lora.modules_to_save, modules, adapted, tied, quantized)
    weights = named_parameters(lora, shapes, family, layers, linear, problems)
    saved = tuple(dict.fromkeys(module for name in lora.modules_to_save for module in modules if matches(module, name)))
    biases = trained_biases(lora, shapes, adapted, saved, problems)
    updated = (*adapted, *weights)
    ranks, rank_counts = patterned(updated, lora.rank_pattern, lora.r, "lora.rank_pattern", problems)
    alphas, alpha_counts = patterned(updated, lora.alpha_pattern, lora.alpha, "lora.alpha_pattern", problems)
    problems += beyond_the_weights(lora, linear, shapes, ranks)
    if problems:
        raise AdapterError.several(problems)
    found = {place_in(family.stacks, name)[:2] for name in updated}
    by_stack = {stack: tuple(sorted(layer for owner, layer in found if owner == stack)) for stack in family.stacks}
    return TargetModules(
        modules=adapted,
        layers_by_stack={stack: inside for stack, inside in by_stack.items() if inside},
        ranks={name: ranks[name] for name in adapted},
        alphas={name: alphas[name] for name in adapted},
        by_name=_counts({name: places[name].inside for name in adapted}, linear, ranks, use_dora=lora.use_dora),
        by_pattern={**rank_counts, **alpha_counts},
        saved=saved,
        saved_parameters=sum(modules[name] for name in saved),
        weights=tuple(AdaptedWeight(name, shapes[name], ranks[name], alphas[name]) for name in weights),
        biases=biases,
    )


def family_notes(
    model: PreTrainedModel, family: ModelSpec, targets: TargetModules | None, *, quantized: Collection[str]
) -> Iterator[str]:
    """What there is to say about what is done with an architecture: what is not known of it, and its experts."""
    yield from (f"{family.model_type}: {why}" for why in family.unknown)
    if targets is not None and family.unreached:
        named = ", ".join(family.unreached[:NAMED]) + (", …" if len(family.unreached) > NAMED else "")
        yield f"{family.model_type}: no adapter on {named}, where nothing would be learned"
    if unread := unread_by_peft(model, targets.modules if targets else ()):
        yield (
            f"{family.model_type}: peft itself does not read the adapter back, and finds no place for {unread[0]}; "
            "loraft reads it, and merged models are read by all"
        )
    ranks, sizes = targets.ranks if targets else {}, linear_modules(model)
    if beyond := {name: min(sizes[name]) for name, rank in ranks.items() if rank > min(sizes[name])}:
        name, most = min(beyond.items(), key=lambda item: item[1])
        yield f"a rank of {ranks[name]} learns no more on {name} than its {most} directions do"
    experts = [weight for weight in (targets.weights if targets else ()) if weight.experts > 1]
    if experts:
        count = sum(weight.parameters for weight in experts)
        yield f"lora.experts: {len(experts)} tensors of experts get {count:,} of the trained parameters"
    stacked = expert_tensors(model).items()
    plain = [weight.numel() for name, weight in stacked if name.rpartition(".")[0] not in quantized]
    if quantized and plain:
        numbers = sum(plain)
        yield f"the {numbers:,} weights of the experts are not quantized: in 16 bits they take {2 * numbers:,} bytes"


def _counts(
    inside: Mapping[str, str], linear: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], *, use_dora: bool
) -> dict[str, ModuleCount]:
    """A [r, in] and B [out, r] of each module; DoRA learns a magnitude for each output besides."""
    counts: dict[str, ModuleCount] = {}
    for name, place in inside.items():
        before, (inputs, outputs) = counts.get(place, ModuleCount(0, 0)), linear[name]
        size = ranks[name] * (inputs + outputs) + (outputs if use_dora else 0)
        counts[place] = ModuleCount(before.modules + 1, before.parameters + size)
    return counts


def _chosen(
    places: Places,
    family: ModelSpec,
    lora: LoraSection,
    layers: Mapping[str, Collection[int]],
    linear: Collection[str],
    modules: Collection[str],
    problems: list[Problem],
) -> tuple[str, ...]:
    """The modules that `target_modules` chooses; what is wrong with it is added to `problems`."""
    wanted = lora.target_modules
    reached = {name: place for name, place in places.items() if place.inside not in family.unreached}
    within = [name for name, place in reached.items() if place.layer in layers[place.stack]]
    if isinstance(wanted, str):
        problems += _unknown_part(wanted, places, family, lora)
        return tuple(name for name in within if _is_of(places[name].inside, wanted, family))
    unmatched = [name for name in wanted if not any(matches(module, name) for module in within)]
    idle = places.keys() - reached.keys()
    problems += [_unmatched(name, reached, idle, linear, modules) for name in unmatched]
    return tuple(module for module in within if matches(module, *wanted))


def _is_of(inside: str, part: str, family: ModelSpec) -> bool:
    """Whether a module of a layer is of `all-linear`, its `attention` or its `mlp`; routers are of none of them."""
    of_attention = matches(inside, *family.attention)
    of_mlp = not of_attention and matches(inside, *family.mlp)
    return inside not in family.routers and {"attention": of_attention, "mlp": of_mlp}.get(part, True)


def _unknown_part(part: str, places: Places, family: ModelSpec, lora: LoraSection) -> Iterator[Problem]:
    """Why the modules of a part cannot be told; experts that are one tensor are adapted by `target_parameters`."""
    if part == "all-linear" or (family.attention if part == "attention" else family.mlp):
        return
    if part == "mlp" and family.experts:
        message = (
            f"{family.experts} holds the weights of all experts in one tensor, and LoRA adapts linear modules: "
            "there is none in the feed-forward part"
        )
        if not lora.target_parameters:
            yield Problem(message, None, KEY, "Write attention: its projections are linear modules.")
        return
    inside = ", ".join(sorted({place.inside for place in places.values()}))
    message = f"which modules of a {family.model_type} are its {part} is not known"
    yield Problem(message, None, KEY, f"Write all-linear, or name them: {inside}.")


def _unmatched(
    name: str, places: Places, idle: Collection[str], linear: Collection[str], modules: Collection[str]
) -> Problem:
    """Why a name of `target_modules` matches nothing: each reason has its own remedy."""
    remedy = "lora.modules_to_save trains it whole."
    if elsewhere := [place for module, place in places.items() if matches(module, name)]:
        message = f"{name} exists only in layers that lora.layers leaves out"
        one_stack = len({place.stack for place in places.values()}) == 1
        spans = [
            _span(sorted({place.layer for place in elsewhere if place.stack == stack}))
            + ("" if one_stack else f" of the {stack}")
            for stack in sorted({place.stack for place in elsewhere})
        ]
        remedy = f"It is in {' and '.join(spans)}."
    elif any(matches(module, name) for module in idle):
        message = f"what the model gives does not come through {name}, so nothing would be learned there"
        remedy = "Leave it out."
    elif any(matches(module, name) for module in linear):
        message = f"{name} lies outside the transformer layers"
    elif any(matches(module, name) for module in modules):
        message = f"{name} is not a linear layer"
    else:
        message, remedy = f"no module is called {name}", nearest(name, {place.inside for place in places.values()})
    return Problem(message, None, KEY, remedy)


def _span(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    unbroken = layers[-1] - layers[0] + 1 == len(layers)
    return f"layers {layers[0]}-{layers[-1]}" if unbroken else f"layers {', '.join(map(str, layers))}"


def targets_in(
    model: PreTrainedModel,
    family: ModelSpec,
    lora: LoraSection,
    *,
    quantized: Collection[str] = (),
    head: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> TargetModules:
    """Resolve the `lora` section against a model, whether its weights are loaded or not.

    The weights of the modules `quantized` are, or will be, stored in 4 or 8 bits. The modules of a classification
    `head` are trained whole without being named, and the rows of new `tokens` by themselves.

    Raises:
        AdapterError: With every name, layer or pattern that matches nothing or cannot be trained.
    """
    named = tuple(name for name in head if name not in lora.modules_to_save)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    lora = with_experts(shapes, family, lora)
    found = select(
        adaptable_modules(model, lora),
        family,
        lora.model_copy(update={"modules_to_save": (*lora.modules_to_save, *named)}),
        depths(model, family.stacks),
        modules=sized_modules(model),
        tied=tied_modules(model),
        quantized=quantized,
        shapes=shapes,
    )
    trained = (*found.modules, *found.saved, *(weight.name for weight in found.weights))
    rows = token_rows_in(model, tokens, trained)
    width = sum(len(each) * table.shape[1] for name, table in tables_of(model).items() if (each := rows.get(name)))
    return replace(found, rows=rows, row_parameters=width)
