"""Rows as JSON Lines and as JSON: one object a line, or one list of objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loraft.rows.opening import RowFile, compression_of, lines_of, opened
from loraft.rows.row import RawRow, UnreadableError, look, reason, remedy_of, source_error, text_of

DEEPEST = 100
"""The most levels of lists and objects: Python walks through some hundreds, and no row means so many."""
LISTS_OF_A_ROW = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools")
"""Columns that hold a list: an object that has one is a row, and none that rows lie in."""


class RepeatedKeyError(UnreadableError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"has the key {key!r} twice in one object")


class _Repeated(dict[str, Any]):
    """An object that has a key twice; the last value stands."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.key = Counter(name for name, _ in pairs).most_common(1)[0][0]


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(pairs)


_decode = json.JSONDecoder(object_pairs_hook=_object_of_pairs).decode


def loads(text: str) -> Any:
    """What a JSON text says, which whatever follows can walk through.

    Raises:
        RepeatedKeyError: An object has a key twice.
        json.JSONDecodeError: It is no JSON.
        RecursionError: It is nested too deeply.
        ValueError: A number is too long.
    """
    return _unrepeated(_decode(text))


def _unrepeated(value: object) -> Any:
    if (key := _repeated_in(value)) is not None:
        raise RepeatedKeyError(key)
    return value


def _repeated_in(value: object) -> str | None:
    """A key that an object in `value` has twice; None where there is none.

    Raises:
        RecursionError: It is nested too deeply.
    """
    level, depth, key = [value], 0, None
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        key = key or next((each.key for each in level if isinstance(each, _Repeated)), None)
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return key


def jsonl_rows(file: RowFile) -> Iterator[RawRow]:
    """The rows of a file with one object a line.

    Raises:
        DataError: At the first row: it holds JSON of another layout.
    """
    is_first = True
    with opened(file) as stream:
        for number, raw in lines_of(stream, file):
            if not raw.strip():
                continue
            if is_first:
                _refuse_other_json(raw, stream.peek(), file)
            is_first = False
            yield partial(look, f"{file.name}:{number}", _line, raw, number == 1)


def _refuse_other_json(first: bytes, following: bytes, file: RowFile) -> None:
    """A list of rows, or rows of several lines each: every line would be wrong, and none would say why."""
    text = first.removeprefix(b"\xef\xbb\xbf").strip()
    if text == b"{" and following.lstrip().startswith(b'"'):
        name = "" if compression_of(file.path) else f" {file.path.name}"
        message, remedy = "has objects of several lines each", f"Write each in one line: jq -c .{name}"
        raise source_error(f"{message}, and .jsonl is one object a line", file.name, remedy)
    if text.startswith(b"["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = [{}]  # it goes on in the next line
        if isinstance(value, list) and value and isinstance(value[0], dict):
            remedy = f"Name the file {_renamed(file, '.json')}."
            raise source_error("holds a list, and .jsonl is one object a line", file.name, remedy)


def _renamed(file: RowFile, kind: str) -> str:
    """The name of a file as one of another type, compressed as it is."""
    end = file.path.suffix if compression_of(file.path) else ""
    name = file.path.name.removesuffix(end)
    return f"{name[: -len(file.kind)]}{kind}{end}"


def json_rows(file: RowFile) -> Iterator[RawRow]:
    """The rows of a file with one list of objects, which is read whole.

    Raises:
        DataError: At the first row: it is no JSON, or no such list.
    """
    try:
        with opened(file) as stream:
            loaded = _decode(text_of(stream.read(), first=True))
        _repeated_in(loaded)  # is it nested too deeply? A key that stands twice spoils its row alone
    except (ValueError, RecursionError) as error:
        why = reason(error)
        remedy = _of_several_objects(file) if "Extra data" in why else remedy_of(why)
        raise source_error(why, file.name, remedy) from None
    if not isinstance(loaded, list):
        values = loaded.items() if isinstance(loaded, dict) else ()
        lists = [key for key, value in values if isinstance(value, list) and key not in LISTS_OF_A_ROW]
        remedy = "write the list alone, or one object a line as .jsonl"
        if isinstance(loaded, dict) and not lists:
            inside, remedy = "; it holds one object", "Write [ before the object and ] after it, where it is a row."
        else:
            inside = f"; the rows seem to be in {lists[0]!r}" if lists else ""
        raise source_error(f"must hold a list of objects{inside}", file.name, remedy)
    for number, value in enumerate(loaded, start=1):
        yield partial(look, f"{file.name}: row {number}", _object, value)


def _of_several_objects(file: RowFile) -> str:
    """What to do about objects that follow one another without being a list."""
    with opened(file) as stream:
        first = next((line for line in stream if line.strip()), b"")
    try:
        json.loads(first)
    except ValueError:
        return "Write one list: [ before the first object, commas between them and ] after the last."
    return f"one object a line is JSON Lines: name the file {_renamed(file, '.jsonl')}"


def _line(raw: bytes, first: bool) -> Mapping[str, object]:
    return _object(_decode(text_of(raw, first=first).rstrip("\r\n")))


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(found := _unrepeated(value), dict):
        raise UnreadableError("is not a JSON object")
    return found
