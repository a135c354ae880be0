"""Rows in the field's formats, turned into what is rendered: a conversation, a completion, or plain text.

This module knows columns and their meaning. It is pure: it refuses to know files, tokenizers and templates. A row
that does not fit is an error that names the field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from loraft.config.schema import RowFormat
from loraft.data.records import Row
from loraft.errors import DataError

__all__ = ["Completion", "Conversation", "Message", "Record", "Text", "detect_format", "to_record"]

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
    fields = _Fields(row, columns)
    if row_format == "messages":
        return _conversation(fields, "messages", "role", "content", {role: role for role in ROLES})
    if row_format == "sharegpt":
        return _conversation(fields, "conversations", "from", "value", SHAREGPT_ROLES)
    if row_format == "alpaca":
        given = fields.optional_text("input")
        asked = fields.text("instruction") + (f"\n\n{given}" if given else "")
        turns = [Message("user", asked), Message("assistant", fields.text("output"))]
        system = fields.optional_text("system")
        return Conversation(tuple([Message("system", system), *turns] if system else turns))
    if row_format == "prompt_completion":
        return Completion(fields.text("prompt"), fields.text("completion"))
    return Text(fields.text("text"))


def _conversation(
    fields: _Fields, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Conversation:
    turns = fields.sequence(column)
    messages = tuple(
        _message(fields, f"{column}[{index}]", turn, role_key, content_key, roles) for index, turn in enumerate(turns)
    )
    if not any(message.role == "assistant" for message in messages):
        raise fields.wrong(column, "no turn is the assistant's, so there is nothing to train on")
    return Conversation(messages)


def _message(
    fields: _Fields, place: str, turn: object, role_key: str, content_key: str, roles: Mapping[str, str]
) -> Message:
    if not isinstance(turn, Mapping):
        raise fields.wrong(place, f"must be an object with {role_key} and {content_key}; found {_kind(turn)}")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise fields.wrong(f"{place}.{role_key}", f"must be one of {', '.join(sorted(roles))}; found {_shown(role)}")
    content = turn.get(content_key)
    # Only an assistant's empty turn has nothing to teach; an empty system prompt is a choice.
    if not isinstance(content, str):
        raise fields.wrong(f"{place}.{content_key}", f"must be text; found {_kind(content)}")
    if not content.strip() and roles[role] == "assistant":
        raise fields.wrong(f"{place}.{content_key}", "is empty")
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise fields.wrong(f"{place}.train", f"must be true or false; found {_kind(train)}")
    return Message(roles[role], _clean(fields, f"{place}.{content_key}", content), train)


@dataclass(frozen=True)
class _Fields:
    """A row's fields under our names."""

    row: Row
    columns: Mapping[str, str]

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text; found {_kind(value)}")
        if not value.strip():
            raise self.wrong(name, "is empty")
        return _clean(self, name, value)

    def optional_text(self, name: str) -> str:
        value = self.row.values.get(self.columns.get(name, name))
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text or absent; found {_kind(value)}")
        return _clean(self, name, value)

    def sequence(self, name: str) -> Sequence[object]:
        value = self._value(name)
        if not isinstance(value, list | tuple):
            raise self.wrong(name, f"must be a list of turns; found {_kind(value)}")
        if not value:
            raise self.wrong(name, "is an empty list")
        return value

    def wrong(self, field: str, message: str) -> DataError:
        head, dot, rest = field.partition(".")
        name, bracket, index = head.partition("[")
        theirs = f"{self.columns.get(name, name)}{bracket}{index}{dot}{rest}"
        return DataError(message, where=self.row.where, key=theirs)

    def _value(self, name: str) -> object:
        theirs = self.columns.get(name, name)
        if theirs not in self.row.values:
            found = ", ".join(sorted(self.row.values)) or "none"
            raise DataError(f"is missing; the row has {found}", where=self.row.where, key=theirs)
        return self.row.values[theirs]


def _clean(fields: _Fields, name: str, text: str) -> str:
    """Refuse text that no tokenizer can read, or that is a sign of damage: half a surrogate pair, NUL."""
    if "\0" in text:
        raise fields.wrong(name, f"holds a NUL character at character {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fields.wrong(name, f"holds half a character (a lone surrogate) at character {error.start}") from None
    return text


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing (null)"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _shown(value: object) -> str:
    return repr(value)[:60] if isinstance(value, str) else _kind(value)
