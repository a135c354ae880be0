"""The commands of `loraft chat`: what a line that begins with a slash means, does and says."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from loraft.errors import InvalidInputError
from loraft.inference.requests import GenerationRequest

if TYPE_CHECKING:
    from loraft.inference.conversation import ChatSession

MEANINGS = {
    "/help": "this list",
    "/system [TEXT]": 'set the system prompt, "" for none; alone: show it',
    "/reset": "forget all that was said",
    "/undo": "take back the last question and its answer",
    "/adapter [NAME]": "go on in the voice of an adapter, none for the base; alone: list them",
    "/set [KEY=VALUE …]": "change how answers are made, such as temperature=0.7; alone: show it",
    "/save FILE.jsonl": "write the conversation as a row that loraft trains on",
    "/quit": "end, as Ctrl-D does",
}
COMMANDS = tuple(usage.split()[0] for usage in MEANINGS)
SETTINGS = tuple(field.name for field in fields(GenerationRequest))
"""What `/set` can change."""
UNSAID = GenerationRequest()
"""The options of somebody who says nothing: all is as it was saved."""


def parse_line(line: str) -> tuple[str, str]:
    """A command and what is written behind it; no command, and something to say, which two slashes begin with one.

    Raises:
        InvalidInputError: There is no such command.
    """
    if not line.startswith("/"):
        return "", line
    if line.startswith("//"):
        return "", line[1:]
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        remedy = f"{f'Did you mean {close[0]}? ' if close else ''}/help lists them; // says a line that begins with /."
        raise InvalidInputError(f"there is no command {name}", remedy=remedy)
    return name, argument.strip()


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
        if pair and "=" in word and word.partition("=")[0] in SETTINGS:
            yield pair
            pair = word
        else:
            pair = f"{pair} {word}".strip()
    yield pair


def _setting(pair: str) -> tuple[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    key, equals, value = (part.strip() for part in pair.partition("="))
    if key not in SETTINGS:
        close = difflib.get_close_matches(key, SETTINGS, n=1)
        remedy = f"Did you mean {close[0]}?" if close else f"There is {', '.join(SETTINGS)}."
        raise InvalidInputError(f"there is no setting {key!r}", remedy=remedy)
    if not equals:
        raise InvalidInputError(f"{key} needs a value", remedy=f"Write {key}=VALUE, or {key}=none for what was saved.")
    if value.lower() in ("", "none", "default"):
        return key, getattr(UNSAID, key)
    if key == "stop":
        return key, tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        return key, TypeAdapter(get_type_hints(GenerationRequest)[key]).validate_strings(value)
    except ValidationError as error:
        raise InvalidInputError(f"{key} cannot be {value!r}: {error.errors()[0]['msg']}") from error


def _help(_: ChatSession, __: str) -> Iterator[str]:
    width = max(map(len, MEANINGS))
    for usage, meaning in MEANINGS.items():
        yield f"{usage:<{width}}  {meaning}"


def _system(conversation: ChatSession, text: str) -> Iterator[str]:
    if text:
        told = "" if text == '""' else text
        conversation.set_options(replace(conversation.options, system=told))
        yield "system prompt set; the conversation goes on with it." if told else "no system prompt from here on."
    else:
        yield conversation.system or "there is no system prompt."


def _reset(conversation: ChatSession, _: str) -> Iterator[str]:
    conversation.reset()
    yield "all that was said is forgotten."


def _undo(conversation: ChatSession, _: str) -> Iterator[str]:
    question = conversation.undo()
    if question is None:
        yield "nothing was said yet."
    else:
        first = " ".join(question.content.split())
        yield f"taken back: {first if len(first) <= 60 else first[:59] + '…'}"


def _adapter(conversation: ChatSession, name: str) -> Iterator[str]:
    if name:
        conversation.speak_as(None if name == "none" else name)
        yield from conversation.voice.renderer.notes
        yield f"{conversation.voice.name} answers from here on; what was said stays."
    else:
        for each in conversation.session.voices:
            shown = f"{each} (without an adapter; /adapter none)" if each not in conversation.session.adapters else each
            yield f"{'*' if each == conversation.voice.name else ' '} {shown}"


def _set(conversation: ChatSession, text: str) -> Iterator[str]:
    if text:
        conversation.set_options(with_settings(conversation.options, text))
    settings = conversation.voice.settings(conversation.options)
    in_force = {**vars(settings["rules"]), **settings, "system": conversation.system}
    width = 2 + max(map(len, SETTINGS))
    for name in SETTINGS:
        value = in_force.get(name)
        given = getattr(conversation.options, name) != getattr(UNSAID, name)
        yield f"{name:<{width}}{'none' if value is None else value}{'' if given else '  (as saved)'}"


def _save(conversation: ChatSession, text: str) -> Iterator[str]:
    from loraft.inference.conversation import save_conversation

    if not text:
        raise InvalidInputError("/save needs a file", remedy="Write /save FILE.jsonl.")
    path = Path(os.path.expanduser(text))
    answers = save_conversation(path, conversation.messages)
    yield f"{answers} answer{'s' * (answers != 1)} saved in {path}, as one row of messages."


ACTIONS: Mapping[str, Callable[[ChatSession, str], Iterator[str]]] = {
    f"/{action.__name__[1:]}": action for action in (_help, _system, _reset, _undo, _adapter, _set, _save)
}
"""What every command does but the one that ends: what is written behind its name goes in, lines to show come out."""
