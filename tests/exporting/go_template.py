"""As much of Go's templates as a Modelfile of ours has: range, if, else if, and one variable."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loraft.rows.formats import Message

Node = tuple[str, object]


def rendered(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation."""
    parts = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    text, _ = _block(parts, 0, messages, Message("", ""), {}, acts=True)
    return text


def _block(
    parts: Sequence[str], at: int, messages: Sequence[Message], message: Message, held: dict[str, str], *, acts: bool
) -> tuple[str, int]:
    """What is printed from a part on, and at which part its block ends; nothing is done where it does not act."""
    text = ""
    while at < len(parts):
        word = parts[at][2:-2].strip() if parts[at].startswith("{{") else None
        if word is None:
            text += parts[at] if acts else ""
        elif word == "end" or word.startswith("else"):
            return text, at
        elif word == "range .Messages":
            _, end = _block(parts, at + 1, messages, message, held, acts=False)
            text += "".join(_block(parts, at + 1, messages, each, held, acts=True)[0] for each in messages)
            at = end
        elif word.startswith("if "):
            done = not acts
            while word != "end":
                takes = not done and _holds(word.removeprefix("else ").removeprefix("if "), message, held)
                told, at = _block(parts, at + 1, messages, message, held, acts=takes)
                text, done = text + told, done or takes
                word = parts[at][2:-2].strip()
        elif acts:
            text += _done(word, message, held)
        at += 1
    return text, at


def _holds(condition: str, message: Message, held: dict[str, str]) -> bool:
    return bool(held["$system"]) if condition == "$system" else condition == f'eq .Role "{message.role}"'


def _done(word: str, message: Message, held: dict[str, str]) -> str:
    values = {".Content": message.content, '""': "", **held}
    name, _, value = word.replace(":=", "=").partition(" = ")
    if value:
        held[name] = values[value]
        return ""
    return values[name]
