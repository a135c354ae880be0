"""The fields of a row under our names: text where text is needed, and an error that names the field where it is not."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from loraft.errors import DataError
from loraft.rows.readers import RepeatedKeyError, Row, loads


@dataclass(frozen=True)
class Fields:
    """A row's fields under our names.

    Attributes:
        row: The row, with its place.
        columns: Our column names: theirs; `translation.en` is the field `en` of a column that holds objects.
    """

    row: Row
    columns: Mapping[str, str]

    def text(self, name: str) -> str:
        """The text of a field that must have some."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text; found {kind(value)}")
        if not value.strip():
            raise self.wrong(name, "is empty")
        return clean(self, name, value)

    def optional_text(self, name: str) -> str:
        """The text of a field that may be absent."""
        value = _found(self.row.values, self.columns.get(name, name))
        if value is None or value is ABSENT:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text or absent; found {kind(value)}")
        return clean(self, name, value)

    def sequence(self, name: str) -> Sequence[object]:
        """The items of a field that must have some."""
        value = self.value(name)
        if not isinstance(value, list | tuple):
            raise self.wrong(name, f"must be a list of turns; found {kind(value)}")
        if not value:
            raise self.wrong(name, "is an empty list")
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        """The texts of a field that must be an object, or JSON text of one, which is how CSV files keep them."""
        value = self.value(name)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = loads(value)
            except RepeatedKeyError as error:
                raise self.wrong(name, str(error)) from None
            except (ValueError, RecursionError):
                pass  # text that is no JSON stays what it is
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"must be an object with a text for each language; found {kind(value)}")
        return {str(key): text for key, text in value.items() if text is not None}

    def has(self, name: str) -> bool:
        """Whether the row has a column for a field of that name."""
        return column_of(self.columns.get(name, name), self.row.values) in self.row.values

    def renames(self, *names: str) -> bool:
        """Whether the config gives a column of this row to one of these fields."""
        return any(name in self.columns and self.has(name) for name in names)

    def wrong(self, field: str, message: str, remedy: str | None = None) -> DataError:
        """What is wrong with a field, as an error that names it as the file does."""
        head, dot, rest = field.partition(".")
        name, bracket, index = head.partition("[")
        theirs = f"{self.columns.get(name, name)}{bracket}{index}{dot}{rest}"
        return DataError(message, where=self.row.where, key=theirs, remedy=remedy)

    def value(self, name: str) -> object:
        """The field's value, whatever it is; it must be there."""
        theirs = self.columns.get(name, name)
        value = _found(self.row.values, theirs)
        if value is ABSENT:
            found = ", ".join(sorted(self.row.values)) or "none"
            raise DataError(f"is missing; the row has {found}", where=self.row.where, key=theirs)
        return value


ABSENT = object()
"""The value of a field that is not there."""


def column_of(name: str, columns: Container[str]) -> str:
    """The column that a name means: itself, or the one before the dot that holds objects."""
    return name if name in columns else name.partition(".")[0]


def _found(values: Mapping[str, object], name: str) -> object:
    """What a row has under a name: in a column so called, or inside the object before the dot."""
    if name in values:
        return values[name]
    head, dot, rest = name.partition(".")
    inner = values.get(head)
    return _found(inner, rest) if dot and isinstance(inner, Mapping) else ABSENT


def clean(fields: Fields, name: str, text: str) -> str:
    """Refuse text that no tokenizer can read, or that is a sign of damage: half a surrogate pair, NUL."""
    if "\0" in text:
        raise fields.wrong(name, f"holds a NUL character at character {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fields.wrong(name, f"holds half a character (a lone surrogate) at character {error.start}") from None
    return text


def kind(value: object) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing (null)"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(value: object) -> str:
    """A value as an error shows it."""
    return repr(value)[:60] if isinstance(value, str) else kind(value)
