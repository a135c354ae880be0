"""The commands of `loraft chat`: what a line that begins with a slash means."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from loraft.errors import InvalidInputError
from loraft.inference.requests import GenerationRequest

COMMANDS: Mapping[str, tuple[str, str]] = {
    "/help": ("/help", "this list"),
    "/system": ("/system [TEXT]", 'set the system prompt, "" for none; alone: show it'),
    "/reset": ("/reset", "forget all that was said"),
    "/undo": ("/undo", "take back the last question and its answer"),
    "/adapter": ("/adapter [NAME]", "go on in the voice of an adapter, none for the base; alone: list them"),
    "/set": ("/set [KEY=VALUE …]", "change how answers are made, such as temperature=0.7; alone: show it"),
    "/save": ("/save FILE.jsonl", "write the conversation as a row that loraft trains on"),
    "/quit": ("/quit", "end, as Ctrl-D does"),
}
"""Each command by its name: how it is written, and what it does."""

AS_SAVED = ("", "none", "default")
"""The values of a setting that leave it to what was saved."""


@dataclass(frozen=True)
class ChatCommand:
    """A command and what is written behind it."""

    name: str
    argument: str


def parse_line(line: str) -> str | ChatCommand:
    """What a line means: something to say, or a command. Two slashes begin something to say with one.

    Raises:
        InvalidInputError: There is no such command.
    """
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise InvalidInputError(
            f"there is no command {name}", remedy=f"{meant}/help lists them; // says a line that begins with /."
        )
    return ChatCommand(name, argument.strip())


UNSAID = GenerationRequest()
"""The options of somebody who says nothing: all is as it was saved."""


def setting_names() -> tuple[str, ...]:
    """What `/set` can change."""
    return tuple(field.name for field in fields(GenerationRequest))


def with_settings(options: GenerationRequest, text: str) -> GenerationRequest:
    """The options with the `key=value` pairs of `text` in them; whether the values are in bounds is not looked at.

    Raises:
        InvalidInputError: A key does not exist, or a value is of another type.
    """
    return replace(options, **dict(_setting(pair) for pair in _pairs(text)))


def _pairs(text: str) -> Iterator[str]:
    """The pairs in a line; what follows a space without an equals sign belongs to the value before it."""
    pair = ""
    for word in text.split():
        if pair and "=" in word and word.partition("=")[0] in setting_names():
            yield pair
            pair = word
        else:
            pair = f"{pair} {word}".strip()
    yield pair


def _setting(pair: str) -> tuple[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    key, equals, value = (part.strip() for part in pair.partition("="))
    if key not in setting_names():
        close = difflib.get_close_matches(key, setting_names(), n=1)
        remedy = f"Did you mean {close[0]}?" if close else f"There is {', '.join(setting_names())}."
        raise InvalidInputError(f"there is no setting {key!r}", remedy=remedy)
    if not equals:
        raise InvalidInputError(f"{key} needs a value", remedy=f"Write {key}=VALUE, or {key}=none for what was saved.")
    if value.lower() in AS_SAVED:
        return key, getattr(UNSAID, key)
    hint = get_type_hints(GenerationRequest)[key]
    given = [part.strip() for part in value.split(",")] if "tuple" in str(hint) else value
    try:
        return key, TypeAdapter(hint).validate_strings(given)
    except ValidationError as error:
        raise InvalidInputError(f"{key} cannot be {value!r}: {error.errors()[0]['msg']}") from error
