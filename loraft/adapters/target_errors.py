"""Why a choice of modules cannot be had: what matches nothing, what must not match, and what cannot be trained whole.

A module cannot be trained whole when it shares its weight with another (one side would leave the tie), when its weight
is stored in 4 bits, or when it is adapted besides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from loraft.errors import Problem
from loraft.models.modules import is_within, matches, nearest

KEY = "lora.target_modules"
WHOLE = "lora.modules_to_save"


def unmatched_target(
    name: str, places: Mapping[str, tuple[str, int, str]], linear: Collection[str], modules: Collection[str]
) -> Problem:
    """Why a name of `target_modules` matches nothing: each reason has its own remedy.

    Args:
        name: The name.
        places: The linear modules inside the layers, by full name: their stack, their layer and their name in it.
        linear: Every linear module.
        modules: Every module that has parameters.
    """
    elsewhere = {(stack, layer) for module, (stack, layer, _) in places.items() if matches(module, name)}
    if elsewhere:
        one_stack = len({stack for stack, _, _ in places.values()}) == 1
        spans = [
            _span(sorted(layer for owner, layer in elsewhere if owner == stack))
            + ("" if one_stack else f" of the {stack}")
            for stack in sorted({stack for stack, _ in elsewhere})
        ]
        remedy = f"It is in {' and '.join(spans)}."
        return Problem(f"{name} exists only in layers that lora.layers leaves out", None, KEY, remedy)
    remedy = "lora.modules_to_save trains it whole."
    if any(matches(module, name) for module in linear):
        return Problem(f"{name} lies outside the transformer layers", None, KEY, remedy)
    if any(matches(module, name) for module in modules):
        return Problem(f"{name} is not a linear layer", None, KEY, remedy)
    return Problem(
        f"no module is called {name}", None, KEY, nearest(name, {inside for _, _, inside in places.values()})
    )


def _span(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    unbroken = layers[-1] - layers[0] + 1 == len(layers)
    return f"layers {layers[0]}-{layers[-1]}" if unbroken else f"layers {', '.join(map(str, layers))}"


def shared_experts(experts: str, wanted: str) -> Problem:
    """LoRA on the experts of a mixture: they are no linear modules.

    Args:
        experts: Where a layer keeps them.
        wanted: The group of modules that was asked for.
    """
    return Problem(
        f"{wanted} would leave out the feed-forward part: {experts} holds the weights of all experts in one tensor, "
        "and LoRA adapts linear modules",
        None,
        KEY,
        "Write attention: its projections are linear modules.",
    )


def unknown_parts(model_type: str, wanted: str, inside: Collection[str]) -> Problem:
    """A group of modules in a family that the table does not have.

    Args:
        model_type: The family.
        wanted: The group.
        inside: The linear modules that its layers have.
    """
    return Problem(
        f"which modules of a {model_type} are its {wanted} is not known",
        None,
        KEY,
        f"Write all-linear, or name them: {', '.join(sorted(inside))}.",
    )


def trained_whole(
    wanted: Sequence[str],
    modules: Collection[str],
    adapted: Collection[str],
    tied: Collection[str],
    quantized: Collection[str],
) -> tuple[tuple[str, ...], list[Problem]]:
    """The full names of the modules that `wanted` means, and what is wrong with those that cannot be trained.

    Args:
        wanted: Names from the config: full, or the last path parts.
        modules: Every module that has parameters.
        adapted: The modules that get low-rank updates.
        tied: The modules that share a weight with another.
        quantized: The modules whose weight is stored in 4 bits.
    """
    found: dict[str, None] = {}
    problems: list[Problem] = []
    for name in wanted:
        outermost = [module for module in modules if matches(module, name)]
        inner = [module for module in modules if any(is_within(module, outer) for outer in outermost)]
        found.update(dict.fromkeys(outermost))
        if not outermost:
            problems.append(Problem(f"no module is called {name}", None, WHOLE, nearest(name, modules)))
        elif shared := sorted(set(inner).intersection(tied)):
            problems.append(_tied(name, sorted(set(tied).difference(shared))))
        elif set(inner).intersection(quantized):
            remedy = "Adapt it through lora.target_modules, or use method: lora."
            problems.append(Problem(f"{name} is stored in 4 bits and cannot be trained whole", None, WHOLE, remedy))
        elif set(inner).intersection(adapted):
            remedy = "Name it in one of the two."
            message = f"{name} is adapted by lora.target_modules and trained whole besides"
            problems.append(Problem(message, None, WHOLE, remedy))
    return tuple(found), problems


def _tied(name: str, partners: Sequence[str]) -> Problem:
    with_whom = " and ".join(partners) or "another module"
    return Problem(
        f"{name} shares its weight with {with_whom}, and training one side would break the tie",
        None,
        WHOLE,
        "Leave it out: the modules inside the layers are adapted without it.",
    )
