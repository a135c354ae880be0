"""What an adapter trains besides linear modules: modules whole, parameters by themselves, biases of the base."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from loraft.config.schema import of_modules_alone
from loraft.config.sections import FROM_SINGULAR, LoraSection
from loraft.errors import AdapterError, Problem
from loraft.models.model_structure import stacks_experts
from loraft.models.modules import is_within, matches, nearest
from loraft.models.registry import ModelSpec, place_in

KEY, WHOLE = "lora.target_parameters", "lora.modules_to_save"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdaptedWeight:
    """A parameter with an update of its own.

    Attributes:
        name: Its full name.
        shape: `[out, in]`, or of several experts `[experts, …, …]`.
        rank: That of each expert.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    alpha: float

    @property
    def experts(self) -> int:
        """How many matrices it holds."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def factors(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The sizes of A and of B, which lie the other way where the parameter does."""
        rows = self.rank * self.experts
        return (rows, self.shape[-1]), (self.shape[-2], rows)

    @property
    def parameters(self) -> int:
        """The numbers of A and B."""
        return sum(first * second for first, second in self.factors)


def with_experts(shapes: Shapes, family: ModelSpec, lora: LoraSection) -> LoraSection:
    """The section with the experts of a mixture among `target_parameters`, where its modules stand for all of a layer.

    Raises:
        AdapterError: Something else of the section cannot be had of parameters.
    """
    if family.experts is None or not lora.experts or lora.target_modules not in ("all-linear", "mlp"):
        return lora
    inside = (place_in(family.stacks, name).inside for name, shape in shapes.items() if stacks_experts(name, shape))
    names = tuple(dict.fromkeys(name for name in inside if name and name not in family.unreached))
    adapted = f"and the experts of a {family.model_type} are adapted as parameters"
    remedy = "Write lora.experts: false, or leave this out."
    problems = [Problem(f"{what}, {adapted}", None, key, remedy) for key, what in of_modules_alone(lora) if names]
    if problems:
        raise AdapterError.several(problems)
    return lora.model_copy(update={"target_parameters": (*lora.target_parameters, *names)})


def named_parameters(
    lora: LoraSection,
    shapes: Shapes,
    family: ModelSpec,
    layers: Mapping[str, Collection[int]],
    linear: Collection[str],
    problems: list[Problem],
) -> list[str]:
    """The parameters that `lora.target_parameters` means inside the chosen layers.

    What is wrong with its names is added to `problems`.
    """
    places = {name: place_in(family.stacks, name) for name in shapes}
    within = {
        name
        for name, place in places.items()
        if place.layer in layers.get(place.stack, ()) and place.inside not in family.unreached
    }
    chosen = [name for name in within if matches(name, *lora.target_parameters)]
    for wanted in lora.target_parameters:
        problems += _problems(wanted, shapes, within, linear, family)
    return sorted(chosen, key=list(shapes).index)


def _problems(
    wanted: str, shapes: Shapes, within: Collection[str], linear: Collection[str], family: ModelSpec
) -> Iterator[Problem]:
    found = [name for name in shapes if matches(name, wanted)]
    if not found:
        inside = sorted({place_in(family.stacks, name).inside for name in within})
        others = [name for name in inside if not any(matches(module, name.rpartition(".")[0]) for module in linear)]
        close = difflib.get_close_matches(wanted, others, n=3, cutoff=0.6)
        remedy = f"Did you mean {' or '.join(close)}?" if close else "Modules are named in lora.target_modules."
        yield Problem(f"no parameter is called {wanted}", None, KEY, remedy)
    elif all(place_in(family.stacks, name).inside in family.unreached for name in found):
        message = f"what the model gives does not come through {wanted}, so nothing would be learned there"
        yield Problem(message, None, KEY, "Leave it out.")
    elif not any(name in within for name in found):
        message = f"{wanted} lies outside of the transformer layers that lora.layers means"
        yield Problem(message, None, KEY, "Name a parameter inside of them.")
    for name in found[:1]:
        module = name.rpartition(".")[0]
        if module in linear:
            remedy = f"Name its module in lora.target_modules: {module.rpartition('.')[2]}."
            yield Problem(f"{wanted} is the weight of a linear module", None, KEY, remedy)
        elif len(shapes[name]) not in (2, 3):
            message = f"{wanted} has {len(shapes[name])} dimensions, and LoRA adapts matrices, of experts one each"
            yield Problem(message, None, KEY, "Leave it out.")


def trained_biases(
    lora: LoraSection, shapes: Shapes, adapted: Collection[str], saved: Sequence[str], problems: list[Problem]
) -> dict[str, int]:
    """The biases that `lora.bias` means, with their sizes, but for those of modules that are trained whole.

    That there are none is added to `problems`.
    """
    if lora.bias == "none":
        return {}
    biases = {name: shape[0] for name, shape in shapes.items() if name.endswith(".bias") and len(shape) == 1}
    if lora.bias == "lora_only":
        biases = {name: size for name, size in biases.items() if name.removesuffix(".bias") in adapted}
    biases = {name: size for name, size in biases.items() if not is_within(name, *saved)}
    if not biases:
        message = "no adapted module has a bias" if lora.bias == "lora_only" else "the model has no bias"
        problems.append(Problem(message, None, "lora.bias", "Leave it out."))
    return biases


def beyond_the_weights(
    lora: LoraSection, linear: Mapping[str, tuple[int, int]], shapes: Shapes, ranks: Mapping[str, int]
) -> Iterator[Problem]:
    """What is wrong with the ranks of modules and parameters.

    A start that is made of directions of a weight cannot have more of them than that has. An update of experts gives
    each a whole rank, and an expert has few.
    """
    sizes = {name: linear[name] if name in linear else shapes[name][-2:] for name in ranks}
    beyond = {name: min(sizes[name]) for name, rank in ranks.items() if rank > min(sizes[name])}
    starts = {name: most for name, most in beyond.items() if name in linear and lora.init in FROM_SINGULAR}
    if starts:
        name, most = min(starts.items(), key=lambda item: item[1])
        message = (
            f"lora.init: {lora.init} begins with directions of the weights, and {name} has {most}, not {ranks[name]}"
        )
        yield Problem(message, None, "lora.r", f"Write at most {most}, or another rank for it in lora.rank_pattern.")
    if experts := {name: most for name, most in beyond.items() if name not in linear}:
        name, most = min(experts.items(), key=lambda item: item[1])
        message = f"a rank of {ranks[name]} is more than {name} has directions, which are {most} in each matrix"
        remedy = f"Write at most {most}, another rank for it in lora.rank_pattern, or lora.experts: false."
        yield Problem(message, None, "lora.r", remedy)


def not_trainable(
    wanted: Sequence[str],
    modules: Collection[str],
    adapted: Collection[str],
    tied: Collection[str],
    quantized: Collection[str],
) -> Iterator[Problem]:
    """What is wrong with the modules of `lora.modules_to_save`: full names, or the last path parts."""
    for name in wanted:
        outermost = [module for module in modules if matches(module, name)]
        inner = {module for module in modules if is_within(module, *outermost)}
        if not outermost:
            message, remedy = f"no module is called {name}", nearest(name, modules)
        elif inner.intersection(tied):
            partners = " and ".join(sorted(set(tied) - inner)) or "another module"
            message = f"{name} shares its weight with {partners}, and training one side would break the tie"
            remedy = "Leave it out: the modules inside the layers are adapted without it."
        elif inner.intersection(quantized):
            message = f"{name} is stored quantized and cannot be trained whole"
            remedy = "Adapt it through lora.target_modules, or train on unquantized weights, by method: lora."
        elif inner.intersection(adapted):
            message = f"{name} is adapted by lora.target_modules and trained whole besides"
            remedy = "Name it in one of the two."
        else:
            continue
        yield Problem(message, None, WHOLE, remedy)
