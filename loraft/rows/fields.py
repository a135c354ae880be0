"""The columns that rows of each format have, and a row's fields under our names, each checked as it is read."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraft.config.choices import RowFormat
from loraft.errors import DataError
from loraft.rows.class_names import NumberedClass
from loraft.rows.json_rows import RepeatedKeyError, loads
from loraft.rows.other_names import instead_of_turns
from loraft.rows.row import Row

Columns = Mapping[str, str]
"""Our column names: theirs; `translation.en` is the field `en` of a column that holds objects."""
COLUMNS: Mapping[RowFormat, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction", "output"),),
    "prompt_completion": (("prompt", "completion"),),
    "text": (("text",),),
    "preferences": (("chosen", "rejected"), ("messages", "rejected_response")),
    "unpaired": (("prompt", "completion", "label"), ("instruction", "completion", "label"), ("messages", "label")),
    "translation": (("translation",), ("source", "target")),
    "classification": (("text", "label"),),
}
"""The columns that each format needs; some have alternatives."""
OPTIONAL_COLUMNS: Mapping[RowFormat, tuple[str, ...]] = {
    "messages": ("tools", "system"),
    "sharegpt": ("tools", "system"),
    "alpaca": ("input", "system"),
    "preferences": ("prompt", "instruction", "input", "tools", "system"),
    "unpaired": ("input", "tools", "system"),
    "classification": ("text_pair",),
}
PREFERENCES = ("chosen", "rejected", "rejected_response")
"""Columns of rows with a better and a worse answer."""
DECIMAL = re.compile(r"\s*[-+]?\d*\.\d+\s*")
"""A label that is a number with a point."""
MOST_DIGITS = sys.int_info.default_max_str_digits
"""Python reads no number of more."""
ABSENT = object()
"""The value of a field that is not there."""


def column_of(name: str, columns: Container[str]) -> str:
    """The column that a name means: itself, or the one before the dot that holds objects."""
    return name if name in columns else name.partition(".")[0]


def has_columns(columns: Collection[str], row_format: RowFormat, theirs: Columns) -> bool:
    """Whether `columns` are all that a format needs, under the names that `theirs` gives them."""
    return bool(_fitting(columns, row_format, theirs))


def _fitting(columns: Collection[str], row_format: RowFormat, theirs: Columns) -> list[tuple[str, ...]]:
    """Of the columns that a format needs, the alternatives that are there."""
    return [
        needed
        for needed in COLUMNS[row_format]
        if all(column_of(theirs.get(name, name), columns) in columns for name in needed)
    ]


def columns_of(row_format: RowFormat, *, optional: bool = True) -> tuple[str, ...]:
    """The columns that rows of a format are read from, those that they need first."""
    needed = tuple(column for columns in COLUMNS[row_format] for column in columns)
    return (*needed, *OPTIONAL_COLUMNS.get(row_format, ())) if optional else needed


def read_names(columns: Collection[str], row_format: RowFormat, renamed: Columns) -> tuple[str, ...]:
    """Our names of what is read of rows with such columns: an instruction and its input are not beside a prompt."""
    names = columns_of(row_format)
    instructs = "instruction" in renamed or ("instruction" in columns and "prompt" not in columns)
    if instructs or "prompt" not in names:
        return names
    return tuple(name for name in names if name not in ("instruction", "input"))


def unread_columns(
    columns: Sequence[str], row_format: RowFormat, renamed: Columns, *, as_pair: bool = False
) -> tuple[str, ...]:
    """Which of `columns` nothing is read from in rows of a format.

    `as_pair` says that an instruction is a source, which has no system prompt.
    """
    left_out = {"system"} if as_pair and row_format == "alpaca" else set[str]()
    fitting = _fitting(columns, row_format, renamed)
    if fitting:  # that which is named counts, else the first
        chosen = max(fitting, key=lambda needed: len(renamed.keys() & {*needed}))
        left_out |= {name for needed in COLUMNS[row_format] for name in needed} - {*chosen}
    names = (name for name in read_names(columns, row_format, renamed) if name not in left_out)
    read = {column_of(renamed.get(name, name), columns) for name in names}
    return tuple(column for column in columns if column not in read)


def refuse_preferences(
    columns: Collection[str], renamed: Columns, formats: Collection[RowFormat], *, learns_them: str
) -> None:
    """Refuse better and worse answers, unless `renamed` says what is to be learned of them.

    `learns_them` is the task for them, and `formats` are those of the task that is asked for.

    Raises:
        DataError: The columns are of such pairs, or of answers that a label calls good or bad.
    """

    def alone(answer: str) -> str:
        """The columns by which the good answers alone are learned; empty where the task has no such rows."""
        ways = []
        if "alpaca" in formats and (asked := next((name for name in ("prompt", "instruction") if name in columns), "")):
            ways.append(f"data.columns: {{instruction: {asked}, output: {answer}}} where they are text")
        if "messages" in formats and answer == "chosen":
            ways.append("data.columns: {messages: chosen} where they are turns")
        return ", ".join(ways)

    if {"completion", "label"} <= {*columns} and "text" not in columns and not renamed:
        message = "completion and label are of answers that are good or bad"
        remedy = f"Write task: {learns_them} and preference.loss: kto, which learns them"
        if ours := alone("completion"):
            remedy += f"; or leave the bad ones out, and write {ours}"
        raise DataError(message, key="data.format", remedy=f"{remedy}.")
    found = [column for column in PREFERENCES if column in columns]
    if not found or renamed:
        return
    remedy = f"Write task: {learns_them}"
    if "chosen" in columns and (ours := alone("chosen")):
        remedy += f"; or, to learn the better answers alone, {ours}"
    elif "messages" in formats:
        remedy += ", which learns them; or name the format to be learned, as in data.format: messages"
    remedy += "."
    verb = "are" if len(found) > 1 else "is"
    message = f"{' and '.join(found)} {verb} of preference pairs"
    raise DataError(message, key="data.format", remedy=remedy)


@dataclass(frozen=True)
class Fields:
    """A row's fields under our names."""

    row: Row
    columns: Columns

    def text(self, name: str) -> str:
        """The text of a field that must have some."""
        return self.text_in(name, self.value(name))

    def text_in(self, name: str, value: object, wanted: str = "text") -> str:
        """A value that must be text and hold some; `wanted` is what an error says that it must be."""
        if not isinstance(value, str):
            raise self._no_text(name, value, wanted)
        if not value.strip():
            raise self.wrong(name, "is empty")
        return self.clean(name, value)

    def optional_text(self, name: str) -> str:
        """The text of a field that may be absent."""
        value = self.optional(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._no_text(name, value, "text or absent")
        return self.clean(name, value)

    def _no_text(self, name: str, value: object, wanted: str) -> DataError:
        """What is wrong with a field that is to be text; of numbers and truths what makes text."""
        theirs = self.columns.get(name, name)
        casts = f"rows.cast_column({theirs!r}, datasets.Value('string'))"
        makes_text = shlex.quote(f"{self._in_jq(name)} |= tostring")
        remedy = f"Put it in quotes; of a whole file: jq -c {makes_text}, or with datasets {casts}."
        return self.wrong(
            name, f"must be {wanted}; found {kind(value)}", remedy if isinstance(value, int | float) else None
        )

    def turns_of_both(self, asked: str, answer: str) -> str:
        """What to do where what is asked is a list of turns: of a whole file too, where the answer is one as well."""
        joined = shlex.quote(f".messages = {self._in_jq(asked)} + {self._in_jq(answer)}")
        is_list = isinstance(self.optional(answer), list | tuple)
        return f"Write the turns of both as one list{f': jq -c {joined}' if is_list else '.'}"

    def _in_jq(self, name: str) -> str:
        """The field as jq names it, whatever characters it has."""
        theirs = self.columns.get(name, name)
        parts = [theirs] if theirs in self.row.values else theirs.split(".")
        return "".join(f".{json.dumps(part, ensure_ascii=False)}" for part in parts)

    def optional(self, name: str) -> object:
        """The value of a field that may be absent, from an object too: None then, as where it is null.

        A column that another name was given is not there under its own as well.
        """
        is_taken = name not in self.columns and name in self.columns.values()
        value = ABSENT if is_taken else _found(self.row.values, self.columns.get(name, name))
        return None if value is ABSENT else value

    def sequence(self, name: str) -> Sequence[object]:
        """The items of a field that must have some; or JSON text of them, which is how CSV files keep them."""
        value = self._structure(name, "[")
        if not isinstance(value, list | tuple):
            theirs = self.columns.get(name, name)
            raise self.wrong(name, f"must be a list of turns; found {kind(value)}", instead_of_turns(theirs, value))
        if not value:
            raise self.wrong(name, "is an empty list")
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        """The texts of a field that must be an object, or JSON text of one, which is how CSV files keep them."""
        value = self._structure(name, "{")
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"must be an object with a text for each language; found {kind(value)}")
        return {str(key): text for key, text in value.items() if text is not None}

    def _structure(self, name: str, opening: str) -> object:
        """A field that is to have parts: what it holds, or what its text says where that is JSON of them."""
        value = self.value(name)
        is_json = isinstance(value, str) and value.lstrip().startswith(opening)
        return self.json(name, str(value)) if is_json else value

    def json(self, name: str, text: str, otherwise: str | None = None) -> Any:
        """What JSON text says; text that is none is wrong, as `otherwise` says, or stays what it is."""
        try:
            return loads(text)
        except RepeatedKeyError as error:
            raise self.wrong(name, str(error)) from None
        except RecursionError:
            raise self.wrong(name, "is nested too deeply") from None
        except ValueError:
            if otherwise is None:
                return text
            raise self.wrong(name, otherwise) from None

    def has(self, name: str) -> bool:
        """Whether the row has a column for a field of that name."""
        return column_of(self.columns.get(name, name), self.row.values) in self.row.values

    def filled(self, name: str) -> object:
        """The field's value, where it may be absent: None then, as where it is null."""
        return self.value(name) if self.has(name) else None

    def value(self, name: str) -> object:
        """The field's value, whatever it is; it must be there."""
        theirs = self.columns.get(name, name)
        value = _found(self.row.values, theirs)
        if value is ABSENT:
            found = ", ".join(sorted(self.row.values)) or "none"
            raise DataError(f"is missing; the row has {found}", where=self.row.where, key=theirs)
        return value

    def clean(self, name: str, text: str) -> str:
        """Refuse text that no tokenizer can read, or that is a sign of damage: half a surrogate pair, NUL."""
        if "\0" in text:
            raise self.wrong(name, f"holds a NUL character at character {text.index(chr(0))}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.wrong(name, f"holds half a character (a lone surrogate) at character {error.start}") from None
        return text

    def clean_inside(self, name: str, value: object) -> None:
        """Refuse such text wherever it lies in a value."""
        if isinstance(value, str):
            self.clean(name, value)
        elif isinstance(value, Mapping | list | tuple):
            for each in value.items() if isinstance(value, Mapping) else value:
                self.clean_inside(name, each)

    def wrong(self, field: str, message: str, remedy: str | None = None) -> DataError:
        """What is wrong with a field, as an error that names it as the file does."""
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        theirs = self.columns.get(name, name) + field[len(name) :]
        return DataError(message, where=self.row.where, key=theirs, remedy=remedy)


def _found(values: Mapping[str, object], name: str) -> object:
    """What a row has under a name: in a column so called, or inside the object before the dot."""
    if name in values:
        return values[name]
    head, dot, rest = name.partition(".")
    inner = values.get(head)
    return _found(inner, rest) if dot and isinstance(inner, Mapping) else ABSENT


def class_label(fields: Fields) -> str | int:
    """The name or the number of the class in a row's `label`, which may be a list of one."""
    value = fields.value("label")
    if isinstance(value, list | tuple):
        if len(value) > 1:
            remedy = "Write one row a label, or keep the main one."
            raise fields.wrong("label", f"has {len(value)} labels, and a row belongs to one class", remedy)
        if not value:
            raise fields.wrong("label", "is an empty list")
        (value,) = value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | NumberedClass):
        return value
    if isinstance(value, float) or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        remedy = (
            "Scores are for regression, which loraft has not; of classes write whole numbers, which pandas makes "
            "decimal in a column where one is missing."
        )
        raise fields.wrong("label", f"is {value}, and a class is text or a whole number", remedy)
    label = fields.text_in("label", value, "text or a whole number").strip()
    if (digits := label.removeprefix("-")).isdecimal() and len(digits) > MOST_DIGITS:
        remedy = "Look whether columns are shifted, or what stands there is no label."
        raise fields.wrong("label", f"is a number of {len(digits):,} digits", remedy)
    return label


OTHERWISE = (
    "Where rows call a language otherwise than the tokenizer, a config names the texts, "
    "data.columns: {source: translation.en, target: translation.fr}; or call them source and target in the rows."
)
"""What helps where rows say `en` and a tokenizer `eng_Latn`."""


def text_in_language(fields: Fields, texts: Mapping[str, object], key: str, code: str | None) -> str:
    """Of the `texts` of a row's `translation` that in the language that `key` names; `fr_XX` finds `fr` too."""
    found = ", ".join(sorted(texts)) or "none"
    if code is None:
        raise DataError(f"is not set, and the rows have the languages {found}", key=key, remedy="Name one of them.")
    name = next((name for name in (code, code.split("_")[0]) if name in texts), None)
    if name is None:
        remedy = OTHERWISE if "_" in code else None
        raise fields.wrong("translation", f"has no text in {code} ({key}); it has {found}", remedy)
    return fields.text_in(f"translation.{name}", texts[name])


def kind(value: object) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing (null)"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(value: object) -> str:
    """A value as an error shows it."""
    return repr(value)[:60] if type(value) in (str, int, float) else kind(value)
