"""Files of rows, by their type: JSON Lines, JSON, CSV, Parquet.

A file is gone through once, a row at a time (a .json file is read whole), and a row is looked into only when it is
asked for.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraft.errors import DataError, Problem

DEEPEST = 100
"""The most levels of lists and objects: Python walks through some hundreds, and no row means so many."""


class UnreadableError(ValueError):
    """A row that cannot be read; the message says why."""


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


ROWS_OF_PARQUET = 1000
"""Rows of a Parquet file that are decoded together."""


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
        why = _why(error)
        return Problem(why, where, remedy=_remedy(why))


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1})"
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return f"is not JSON: {error.msg} ({place})"
    return "is not JSON that can be read: nested too deeply, or a number too long"


def kind_of(path: Path) -> str:
    """The type of a file, by the end of its name in small letters."""
    return path.suffix.lower()


def rows_in(path: Path) -> Iterator[RawRow]:
    """The rows of a file as they come.

    Raises:
        DataError: At the first row: there is no such file, it cannot be read, or its type is not known.
    """
    if path.is_dir():
        inside = sorted(str(entry) for entry in path.iterdir() if kind_of(entry) in READERS)
        several = f", such as {inside[0]}" if inside else ""
        raise DataError("is a folder, not a file", where=str(path), key="data", remedy=f"name a file in it{several}")
    if not path.exists():
        raise DataError("there is no such file", where=str(path), key="data", remedy=_nearest(path))
    if kind_of(path) not in READERS:
        message, remedy = f"files of type {path.suffix or '(none)'} are not read", f"write it as {', '.join(READERS)}"
        raise DataError(message, where=str(path), key="data", remedy=remedy)
    try:
        if path.stat().st_size == 0:
            raise DataError("is empty", where=str(path), key="data", remedy="Write rows into it, or name another file.")
        yield from READERS[kind_of(path)](path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), key="data") from None


def _nearest(path: Path) -> str:
    beside = {entry.name.lower(): entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else {}
    close = difflib.get_close_matches(path.name.lower(), beside, n=1)
    if close:
        return f"Did you mean {path.parent / beside[close[0]]}?"
    return "Paths are relative to the current folder; a Hub dataset has no file ending."


def _jsonl(path: Path) -> Iterator[RawRow]:
    is_first = True
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            if is_first:
                _refuse_other_json(raw, file.peek(), path)
            is_first = False
            yield partial(look, f"{path}:{number}", _line, raw, number == 1)


def _refuse_other_json(first: bytes, following: bytes, path: Path) -> None:
    """A list of rows, or rows of several lines each: every line would be wrong, and none would say why."""
    text = first.removeprefix(b"\xef\xbb\xbf").strip()
    if text == b"{" and following.lstrip().startswith(b'"'):
        message, remedy = "has objects of several lines each", f"Write each in one line: jq -c . {path.name}"
        raise DataError(f"{message}, and .jsonl is one object a line", where=str(path), key="data", remedy=remedy)
    if text.startswith(b"["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = [{}]  # it goes on in the next line
        if isinstance(value, list) and value and isinstance(value[0], dict):
            remedy = f"Name the file {path.stem}.json."
            raise DataError("holds a list, and .jsonl is one object a line", where=str(path), key="data", remedy=remedy)


def _json(path: Path) -> Iterator[RawRow]:
    try:
        loaded = _decode(_text(path.read_bytes(), first=True))
        _repeated_in(loaded)  # is it nested too deeply? A key that stands twice spoils its row alone
    except (ValueError, RecursionError) as error:
        why = _why(error)
        remedy = _of_several_objects(path) if "Extra data" in why else _remedy(why)
        raise DataError(why, where=str(path), key="data", remedy=remedy) from None
    if not isinstance(loaded, list):
        lists = [key for key, value in loaded.items() if isinstance(value, list)] if isinstance(loaded, dict) else []
        remedy = "write the list alone, or one object a line as .jsonl"
        if isinstance(loaded, dict) and not lists:
            inside, remedy = "; it holds one object", "Write [ before the object and ] after it, where it is a row."
        else:
            inside = f"; the rows seem to be in {lists[0]!r}" if lists else ""
        raise DataError(f"must hold a list of objects{inside}", where=str(path), key="data", remedy=remedy)
    for number, value in enumerate(loaded, start=1):
        yield partial(look, f"{path}: row {number}", _object, value)


def _of_several_objects(path: Path) -> str:
    """What to do about objects that follow one another without being a list."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        json.loads(first)
    except ValueError:
        return "Write one list: [ before the first object, commas between them and ] after the last."
    return "one object a line is JSON Lines: name the file .jsonl"


def _csv(path: Path) -> Iterator[RawRow]:
    """Bytes that are not UTF-8 are escaped while reading, so that they spoil their row and not the file."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        _refuse_other_marks(next((line for line in file if line.strip()), ""), path)
        file.seek(0)
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if cells and header is None:
                    header = _header(cells, f"{path}:{line}")
                elif cells and header is not None:
                    yield partial(look, f"{path}:{line}", _cells, header, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            yield partial(Problem, f"is not CSV: {error}; nothing after it was read", f"{path}:{line}")


def _header(cells: Sequence[str], where: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"the header names {', '.join(twice)} twice", where=where, key="data")
    if not all(_is_utf8(cell) for cell in cells):
        raise DataError("is not UTF-8", where=where, key="data", remedy=_remedy("is not UTF-8"))
    return list(cells)


def _refuse_other_marks(header: str, path: Path) -> None:
    """A file whose cells something else parts than commas, as spreadsheets write it in many countries."""
    plain = re.sub(r'"[^"]*"', "", header)
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if plain.count(mark) > plain.count(","):
            found = f"the header has {name} between its columns: it is separated by {mark if mark == ';' else name}"
            message, remedy = f"{found}, and cells are parted by commas", "write the file with commas, or as .jsonl"
            raise DataError(message, where=f"{path}:1", key="data", remedy=remedy)


def _cells(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, object]:
    if len(cells) > len(header):
        raise UnreadableError("has more cells than the header has columns")
    if len(cells) < len(header):
        raise UnreadableError(f"has no cell for {', '.join(header[len(cells) :])}")
    broken = [column for column, cell in zip(header, cells, strict=True) if not _is_utf8(cell)]
    if broken:
        raise UnreadableError(f"is not UTF-8 in {', '.join(broken)}")
    return dict(zip(header, cells, strict=True))


def _is_utf8(cell: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in cell)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(ROWS_OF_PARQUET):
            for values in batch.to_pylist():
                number += 1
                yield partial(look, f"{path}: row {number}", from_arrow, values)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"is no Parquet file: {str(error).splitlines()[0]}", where=str(path), key="data") from None


REMEDIES: Mapping[str, str] = {
    "is not UTF-8": "Save the file as UTF-8.",
    "is not JSON:": 'Write objects such as {"prompt": "…", "completion": "…"}, with double quotes.',
    "has the key": "Keep one of them: which is meant, nobody can tell.",
    "has more cells": "Put texts with commas or line ends in double quotes.",
}
"""What to do about rows that cannot be read, by how the reason begins."""


def _remedy(why: str) -> str | None:
    return next((remedy for sign, remedy in REMEDIES.items() if why.startswith(sign)), None)


def from_arrow(values: Mapping[str, object]) -> Mapping[str, object]:
    """A row without the nulls inside its objects: Arrow gives every object of a column the keys of all of them."""
    return {column: _present(value) for column, value in values.items()}


def _present(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def _text(raw: bytes, *, first: bool) -> str:
    if b"\0" in raw:
        raise UnreadableError("holds a NUL byte")
    return raw.decode("utf-8-sig" if first else "utf-8")


def _line(raw: bytes, first: bool) -> Mapping[str, object]:
    return _object(_decode(_text(raw, first=first).rstrip("\r\n")))


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(found := _unrepeated(value), dict):
        raise UnreadableError("is not a JSON object")
    return found


Reader = Callable[[Path], Iterator[RawRow]]
READERS: Mapping[str, Reader] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
