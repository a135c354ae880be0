"""`modules_to_save`: the modules that are trained whole beside the low-rank updates, and those that cannot be.

A module cannot be trained whole when it shares its weight with another (one side would leave the tie), when its weight
is stored in 4 bits, or when it is adapted besides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loraft.errors import Problem
from loraft.models.module_names import is_within, matches, nearest

KEY = "lora.modules_to_save"


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
            problems.append(Problem(f"no module is called {name}", None, KEY, nearest(name, modules)))
        elif shared := sorted(set(inner).intersection(tied)):
            problems.append(_tied(name, sorted(set(tied).difference(shared))))
        elif set(inner).intersection(quantized):
            remedy = "Adapt it through lora.target_modules, or use method: lora."
            problems.append(Problem(f"{name} is stored in 4 bits and cannot be trained whole", None, KEY, remedy))
        elif set(inner).intersection(adapted):
            remedy = "Name it in one of the two."
            message = f"{name} is adapted by lora.target_modules and trained whole besides"
            problems.append(Problem(message, None, KEY, remedy))
    return tuple(found), problems


def _tied(name: str, partners: Sequence[str]) -> Problem:
    with_whom = " and ".join(partners) or "another module"
    return Problem(
        f"{name} shares its weight with {with_whom}, and training one side would break the tie",
        None,
        KEY,
        "Leave it out: the modules inside the layers are adapted without it.",
    )
