"""What the commands of `loraft chat` do, and what is said when they did it.

Each takes the conversation and what is written behind the command's name, and yields the lines to show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraft.cli.commands.chat_commands import COMMANDS, UNSAID, setting_names, with_settings
from loraft.errors import InvalidInputError

if TYPE_CHECKING:
    from loraft.inference.conversation import ChatSession


def _help(_: ChatSession, __: str) -> Iterator[str]:
    width = max(len(usage) for usage, _ in COMMANDS.values())
    for usage, meaning in COMMANDS.values():
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
    for name in setting_names():
        value = in_force.get(name)
        given = getattr(conversation.options, name) != getattr(UNSAID, name)
        yield f"{name:<16}{'none' if value is None else value}{'' if given else '  (as saved)'}"


def _save(conversation: ChatSession, text: str) -> Iterator[str]:
    from loraft.inference.conversation import save_conversation

    if not text:
        raise InvalidInputError("/save needs a file", remedy="Write /save FILE.jsonl.")
    path = Path(os.path.expanduser(text))
    answers = save_conversation(path, conversation.messages)
    yield f"{answers} answer{'' if answers == 1 else 's'} saved in {path}, as one row of messages."


ACTIONS: Mapping[str, Callable[[ChatSession, str], Iterator[str]]] = {
    "/help": _help,
    "/system": _system,
    "/reset": _reset,
    "/undo": _undo,
    "/adapter": _adapter,
    "/set": _set,
    "/save": _save,
}
"""Every command but the one that ends, by its name."""
