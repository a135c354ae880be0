"""`rank_pattern` and `alpha_pattern`, and foreign regular expressions matched in bounded time and memory.

Source: peft, `get_pattern_key`: a pattern is a regular expression for the last path parts of a module's name, and
the first pattern that matches wins.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

from loraft.errors import AdapterError, Problem
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
        inner = [module for module in modules if is_within(module, *outermost)]
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


Value = TypeVar("Value")


def values_for(
    modules: Collection[str], patterns: Mapping[str, Value], default: Value, *, where: str | None, key: str
) -> dict[str, Value]:
    """The value of each module: that of the first pattern that matches it, or the default.

    Args:
        modules: Full names.
        patterns: Pattern: value.
        default: The value where no pattern matches.
        where: The file that has the patterns, for errors.
        key: What they are called there.

    Raises:
        AdapterError: A pattern is no regular expression, or takes too long to match.
    """
    matched = _matched(list(patterns), list(modules))
    if problems := _unusable(matched, key, where):
        raise AdapterError.several(problems)
    winners = _winners(modules, matched)
    return {module: default if winner is None else patterns[winner] for module, winner in winners.items()}


def patterned(
    modules: Sequence[str], patterns: Mapping[str, Value], default: Value, key: str
) -> tuple[dict[str, Value], dict[str, int], list[Problem]]:
    """The value of each module, how many modules each pattern decides, and the patterns that decide none.

    Args:
        modules: Full names.
        patterns: Pattern: value.
        default: The value where no pattern matches.
        key: The config's key, for the problems.
    """
    matched = _matched(list(patterns), modules)
    if problems := _unusable(matched, key, None):
        return dict.fromkeys(modules, default), {}, problems
    winners = _winners(modules, matched)
    counts = {pattern: sum(winner == pattern for winner in winners.values()) for pattern in patterns}
    problems = [
        _without_effect(pattern, bool(matched[pattern]), modules, key) for pattern, count in counts.items() if not count
    ]
    values = {module: default if winner is None else patterns[winner] for module, winner in winners.items()}
    return values, counts, problems


def _matched(patterns: Sequence[str], modules: Sequence[str]) -> dict[str, set[str] | str]:
    """The modules that each pattern matches, or why it cannot be used."""
    plain = {pattern: re.compile(_at_the_end(pattern)) for pattern in patterns if PLAIN.fullmatch(pattern)}
    hard = [_at_the_end(pattern) for pattern in patterns if pattern not in plain]
    found = iter(matching(hard, modules, "match"))
    return {
        pattern: set(filter(plain[pattern].match, modules)) if pattern in plain else next(found) for pattern in patterns
    }


def _at_the_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _winners(modules: Collection[str], matched: Mapping[str, set[str] | str]) -> dict[str, str | None]:
    """The first pattern that matches each module."""
    of: dict[str, str | None] = dict.fromkeys(modules)
    for pattern, found in reversed(list(matched.items())):
        of |= {} if isinstance(found, str) else dict.fromkeys(found, pattern)
    return of


def _unusable(matched: Mapping[str, set[str] | str], key: str, where: str | None) -> list[Problem]:
    return [Problem(f"{pattern!r} {why}", where, key) for pattern, why in matched.items() if isinstance(why, str)]


def _without_effect(pattern: str, matches: bool, modules: Sequence[str], key: str) -> Problem:
    if matches:
        return Problem(f"{pattern!r} is hidden: earlier patterns match all its modules", None, key)
    return Problem(f"{pattern!r} matches no adapted module", None, key, nearest(pattern, modules))


PLAIN = re.compile(r"[\w.-]*")
"""A name, or an expression that costs no more than one: it needs no process."""
MOST_SECONDS = 5.0
MOST_BYTES = 512_000_000
CHILD = f"""
import json, re, resource, sys
try:
    resource.setrlimit(resource.RLIMIT_AS, ({MOST_BYTES}, {MOST_BYTES}))
except (ValueError, OSError):
    pass
method, expressions, names = json.load(sys.stdin)
for expression in expressions:
    try:
        match = getattr(re.compile(expression), method)
        answer = [place for place, name in enumerate(names) if match(name)]
    except re.error as error:
        answer = f"is not a regular expression: {{error}}"
    except (RecursionError, MemoryError, OverflowError):
        answer = "is not a regular expression that can be used: it is too large"
    print(json.dumps(answer), flush=True)
"""

Method = Literal["match", "fullmatch"]


def matching(expressions: Sequence[str], names: Sequence[str], method: Method) -> list[set[str] | str]:
    """The names that each expression matches, or why it cannot be used.

    Args:
        expressions: What somebody wrote.
        names: What is compared with each.
        method: As in `re`: from the beginning on, or as a whole.
    """
    if not expressions:
        return []
    asked = json.dumps([method, list(expressions), list(names)])
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=MOST_SECONDS,
            check=False,
        )
        told, why = ended.stdout, "takes too much memory to match"
    except subprocess.TimeoutExpired as error:
        told, why = error.stdout or b"", f"takes more than {MOST_SECONDS:.0f} s to match the names of modules"
    answers = [json.loads(line) for line in told.splitlines()]
    found: list[set[str] | str] = [
        answer if isinstance(answer, str) else {names[place] for place in answer} for answer in answers
    ]
    behind = len(expressions) - len(found) - 1
    return found if behind < 0 else [*found, why, *["stands behind one that could not be matched"] * behind]
