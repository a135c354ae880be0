"""What a turn of a conversation says besides its text: whether it is trained, and what it calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from loraft.rows.fields import Fields, kind, shown


def says_trained(fields: Fields, place: str, turn: Mapping[str, object], role: str) -> bool | None:
    """Whether a turn says by itself that it is trained: by `train`, or as OpenAI's files have it, by `weight: 0`."""
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None and not isinstance(train, bool):
        raise fields.wrong(f"{place}.train", f"must be true or false; found {kind(train)}")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        remedy = "Write 0 to keep the answer out of what is learned, else 1 or nothing."
        raise fields.wrong(f"{place}.weight", f"must be 0 or 1; found {shown(weight)}", remedy)
    return False if train is None and role == "assistant" and weight == 0 else train


def calls_of_text(fields: Fields, place: str, text: str) -> list[dict[str, object]]:
    """The calls that a turn of the role `function_call` makes, as `messages` have them."""
    wanted = "must be a call as JSON, with name and arguments"
    read = fields.json(place, text, wanted)
    called = read if isinstance(read, list) else [read]
    if not called or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in called):
        raise fields.wrong(place, f"{wanted}, or a list of such calls")
    functions = ({"name": call["name"], "arguments": call.get("arguments", {})} for call in called)
    return [{"type": "function", "function": function} for function in functions]


def check_arguments(fields: Fields, place: str, calls: Sequence[Mapping[str, object]]) -> None:
    """Refuse arguments that are JSON text, as OpenAI's files have them, where the object that it says is refused."""
    for index, call in enumerate(calls):
        function = call.get("function")
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            inside = f"{place}[{index}].function.arguments"
            fields.clean_inside(inside, fields.json(inside, arguments))


def with_arguments(call: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
    """A call of a tool with its arguments as text or as an object, whichever of both they are in the row."""
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    arguments: Any = function["arguments"]
    if as_text and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # text that is no JSON stays what it is
            read = json.loads(arguments)
            arguments = read if isinstance(read, Mapping) else arguments
    return {**call, "function": {**function, "arguments": arguments}}
