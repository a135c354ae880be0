"""Rows in the field's formats, turned into what is rendered: a conversation, a completion, or plain text.

A row of prompts is turned into what it asks. This module knows columns and their meaning. It is pure: it refuses to
know files, tokenizers and templates. A row that does not fit is an error that names the field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from loraft.config.schema import RowFormat
from loraft.data.fields import Fields, clean, kind, shown
from loraft.data.records import Row
from loraft.errors import DataError

__all__ = ["Completion", "Conversation", "Message", "Record", "Text", "detect_format", "to_question", "to_record"]

COLUMNS: Mapping[RowFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns that each format needs, in the order in which formats are recognised."""

OPTIONAL_COLUMNS = ("input", "system")
"""What alpaca rows may have besides."""

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip

CHATS: Mapping[str, tuple[str, str, str, Mapping[str, str]]] = {
    "messages": ("messages", "role", "content", {role: role for role in ROLES}),
    "sharegpt": ("conversations", "from", "value", SHAREGPT_ROLES),
}
"""The formats that hold conversations: column, keys of a turn, and what their roles are called here."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said.
        train: Whether an assistant's turn is trained; None leaves it to `data.train_on`.
    """

    role: str
    content: str
    train: bool | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it, as plain text."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, trained on whole."""

    text: str


Record = Conversation | Completion | Text


def detect_format(columns: Collection[str], renamed: Mapping[str, str] | None = None) -> RowFormat:
    """The format that `columns` are of.

    Args:
        columns: The columns of the file.
        renamed: Our column names: theirs.

    Raises:
        DataError: No format fits; it names the columns found and those that each format needs. Or `renamed` has a
            name that no format knows.
    """
    theirs = renamed or {}
    known = {*OPTIONAL_COLUMNS, *(column for needed in COLUMNS.values() for column in needed)}
    if unknown := [name for name in theirs if name not in known]:
        raise DataError(
            f"{', '.join(unknown)} is no column of ours",
            key="data.columns",
            remedy=f"ours are {', '.join(sorted(known))}",
        )
    for name, needed in COLUMNS.items():
        if all(theirs.get(column, column) in columns for column in needed):
            return name
    found = ", ".join(sorted(columns)) or "none"
    needs = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in COLUMNS.items())
    raise DataError(
        f"the columns are {found}, which is none of the known formats",
        key="data.format",
        remedy=f"The formats need these columns: {needs}. data.columns says what ours are called in the file.",
    )


def to_record(row: Row, row_format: RowFormat, columns: Mapping[str, str]) -> Record:
    """What a row says.

    Args:
        row: The row, with its place.
        row_format: The format that its columns are of.
        columns: Our column names: theirs.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, columns)
    if row_format in CHATS:
        return _conversation(fields, *CHATS[row_format])
    if row_format == "alpaca":
        given = fields.optional_text("input")
        asked = fields.text("instruction") + (f"\n\n{given}" if given else "")
        turns = [Message("user", asked), Message("assistant", fields.text("output"))]
        system = fields.optional_text("system")
        return Conversation(tuple([Message("system", system), *turns] if system else turns))
    if row_format == "prompt_completion":
        return Completion(fields.text("prompt"), fields.text("completion"))
    return Text(fields.text("text"))


def to_question(row: Row) -> tuple[Message, ...]:
    """What a row asks: its prompt, or its conversation up to where an answer is due; its `system` before it.

    An empty `system` says that there is none; a row without one leaves it to whoever asks.

    Raises:
        DataError: A field is missing, empty or of the wrong type; it is named with file and line.
    """
    fields = Fields(row, {})
    there = [name for name in ("prompt", *(column for column, *_ in CHATS.values())) if name in row.values]
    if len(there) != 1:
        found = " and ".join(there) or ", ".join(sorted(row.values)) or "nothing"
        raise DataError(f"needs one of prompt, messages and conversations; it has {found}", where=row.where)
    if there == ["prompt"]:
        asked: tuple[Message, ...] = (Message("user", fields.text("prompt")),)
    else:
        asked = _messages(fields, *next(chat for chat in CHATS.values() if chat[0] == there[0]))
    if asked[-1].role not in ("user", "tool"):
        raise fields.wrong(
            f"{there[0]}[{len(asked) - 1}]", f"is the {asked[-1].role}'s, and an answer follows a user's"
        )
    if row.values.get("system") is None:
        return asked
    if asked[0].role == "system":
        raise fields.wrong("system", f"there is a system prompt in {there[0]} besides")
    return (Message("system", fields.optional_text("system")), *asked)


def _conversation(
    fields: Fields, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Conversation:
    messages = _messages(fields, column, role_key, content_key, roles)
    if not any(message.role == "assistant" for message in messages):
        raise fields.wrong(column, "no turn is the assistant's, so there is nothing to train on")
    return Conversation(messages)


def _messages(
    fields: Fields, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> tuple[Message, ...]:
    return tuple(
        _message(fields, f"{column}[{index}]", turn, role_key, content_key, roles)
        for index, turn in enumerate(fields.sequence(column))
    )


def _message(
    fields: Fields, place: str, turn: object, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Message:
    if not isinstance(turn, Mapping):
        raise fields.wrong(place, f"must be an object with {role_key} and {content_key}; found {kind(turn)}")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise fields.wrong(f"{place}.{role_key}", f"must be one of {', '.join(sorted(roles))}; found {shown(role)}")
    content = turn.get(content_key)
    # Only an assistant's empty turn has nothing to teach; an empty system prompt is a choice.
    if not isinstance(content, str):
        raise fields.wrong(f"{place}.{content_key}", f"must be text; found {kind(content)}")
    if not content.strip() and roles[role] == "assistant":
        raise fields.wrong(f"{place}.{content_key}", "is empty")
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise fields.wrong(f"{place}.train", f"must be true or false; found {kind(train)}")
    return Message(roles[role], clean(fields, f"{place}.{content_key}", content), train)
