"""`rank_pattern` and `alpha_pattern`: which pattern decides for which module.

Source: peft, `get_pattern_key`: a pattern is a regular expression for the last path parts of a module's name, and
the first pattern that matches wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from loraft.adapters.names import nearest
from loraft.errors import Problem

__all__ = ["patterned", "value_for"]

Value = TypeVar("Value", int, float)


def value_for(module: str, patterns: Mapping[str, Value], default: Value) -> Value:
    """The value of the first pattern that matches, or the default."""
    return next((value for pattern, value in patterns.items() if _compiled(pattern).match(module)), default)


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
    problems = [problem for pattern in patterns if (problem := _unreadable(pattern, key))]
    if problems:
        return dict.fromkeys(modules, default), {}, problems
    winners = {
        module: next((pattern for pattern in patterns if _compiled(pattern).match(module)), None) for module in modules
    }
    counts = {pattern: sum(winner == pattern for winner in winners.values()) for pattern in patterns}
    problems = [_without_effect(pattern, modules, key) for pattern, count in counts.items() if not count]
    values = {module: default if winner is None else patterns[winner] for module, winner in winners.items()}
    return values, counts, problems


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _unreadable(pattern: str, key: str) -> Problem | None:
    try:
        _compiled(pattern)
    except re.error as error:
        return Problem(f"{pattern!r} is not a regular expression: {error}", None, key)
    return None


def _without_effect(pattern: str, modules: Sequence[str], key: str) -> Problem:
    if any(_compiled(pattern).match(module) for module in modules):
        return Problem(f"{pattern!r} is hidden: earlier patterns match all its modules", None, key)
    return Problem(f"{pattern!r} matches no adapted module", None, key, nearest(pattern, modules))
