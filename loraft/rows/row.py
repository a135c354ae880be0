"""A row as it lies in its file: looked into when it is asked for, and a problem where it cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loraft.errors import DataError, Problem


class UnreadableError(ValueError):
    """A row that cannot be read; the message says why."""


def source_error(message: str, where: str, remedy: str | None = None) -> DataError:
    """What is wrong with a source of rows as a whole, or from a place in it on."""
    return DataError(message, where=where, key="data", remedy=remedy)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: Its fields by column.
        where: `file:line` where lines exist, else `file: row N`, both from 1.
    """

    values: Mapping[str, object]
    where: str


RawRow = Callable[[], Row | Problem]
"""A row as it lies in its file: it is looked into by a call, and a problem is why it cannot be read."""


def look(where: str, read: Callable[..., Mapping[str, object]], *given: object) -> Row | Problem:
    """The row that `read` makes of what is given, or why it cannot be read."""
    try:
        return Row(read(*given), where)
    except (ValueError, RecursionError) as error:
        why = reason(error)
        return Problem(why, where, remedy=remedy_of(why))


def reason(error: ValueError | RecursionError) -> str:
    """Why something cannot be read."""
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1})"
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return f"is not JSON: {error.msg} ({place})"
    return "is not JSON that can be read: nested too deeply, or a number too long"


REMEDIES: Mapping[str, str] = {
    "is not UTF-8": "Save the file as UTF-8.",
    "holds a NUL byte": "Save the file as UTF-8: what has such bytes is UTF-16, compressed, or no text.",
    "is not JSON: Extra data": "Write one object a line, and nothing behind it.",
    "is not JSON:": 'Write objects such as {"prompt": "…", "completion": "…"}, with double quotes.',
    "has the key": "Keep one of them: which is meant, nobody can tell.",
    "may be several rows": "Write such a quote twice, and the cell in quotes; or write the rows as .jsonl.",
    "has more cells": "Put texts with separators or line ends in double quotes.",
}
"""What to do about rows that cannot be read, by how the reason begins."""


def remedy_of(why: str) -> str | None:
    """What to do about a row, or a file, that cannot be read for that reason."""
    return next((remedy for sign, remedy in REMEDIES.items() if why.startswith(sign)), None)


def text_of(raw: bytes, *, first: bool) -> str:
    """The characters of bytes; the `first` of a file may have a mark before them.

    Raises:
        UnreadableError: They hold a NUL.
        UnicodeDecodeError: They are not UTF-8.
    """
    if b"\0" in raw:
        raise UnreadableError("holds a NUL byte")
    return raw.decode("utf-8-sig" if first else "utf-8")
