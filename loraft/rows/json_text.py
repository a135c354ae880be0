"""JSON that a person wrote: an object that has a key twice is an error, where Python would keep the last of them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

DEEPEST = 100
"""The most levels of lists and objects: Python walks through some hundreds, and no row means so many."""


class RepeatedKeyError(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"has the key {key!r} twice in one object")


class _Repeated(dict[str, Any]):
    """An object that had a key twice; the last value stands."""

    key = ""


def loads(text: str) -> Any:
    """What a JSON text says.

    Raises:
        RepeatedKeyError: An object has a key twice.
        json.JSONDecodeError: It is no JSON.
        RecursionError: It is nested too deeply.
        ValueError: A number is too long.
    """
    return _shallow(text, READER.decode(text))


def loads_marked(text: str) -> Any:
    """As `loads`, but an object that has a key twice is there, for `repeated_in` to find."""
    return _shallow(text, json.loads(text, object_pairs_hook=_marked))


def _shallow(text: str, value: Any) -> Any:
    """A value that what follows can walk through.

    Raises:
        RecursionError: It is nested too deeply.
    """
    if text.count("{") + text.count("[") <= DEEPEST:
        return value
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [inner for each in inside for inner in each if isinstance(inner, dict | list)]
    return value


def repeated_in(value: object) -> str | None:
    """A key that an object in `value`, which `loads_marked` gave, has twice; None where there is none."""
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, _Repeated):
            return inner.key
        if isinstance(inner, dict | list):
            stack += inner.values() if isinstance(inner, dict) else inner
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RepeatedKeyError(_twice(pairs))
    return found


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        found = _Repeated(pairs)
        found.key = _twice(pairs)
    return found


def _twice(pairs: list[tuple[str, Any]]) -> str:
    return Counter(name for name, _ in pairs).most_common(1)[0][0]


READER = json.JSONDecoder(object_pairs_hook=_object)
