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
from loraft.models.modules import nearest

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
