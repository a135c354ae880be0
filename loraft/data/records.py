"""Rows as they lie in files, each with the place it came from.

This module knows file types and lines. It refuses to know what a row means. A row that cannot be read is a
problem with file and line, beside the rows that can; a file that cannot be read at all is an error.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loraft.config.schema import DataSource
from loraft.errors import DataError, Problem

__all__ = ["READERS", "Row", "RowsRead", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: Its fields by column.
        where: `file:line` where lines exist, else `file: row N`, both from 1.
    """

    values: Mapping[str, object]
    where: str


@dataclass
class RowsRead:
    """What a source held.

    Attributes:
        rows: The rows that can be read, in order.
        problems: The rows that cannot.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in the order of their first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row.values))


def read_rows(source: DataSource) -> RowsRead:
    """Read every row of a source.

    Raises:
        DataError: There is no such file, builtin or Hub dataset, it cannot be read, or it holds no row.
    """
    if source.path.startswith("builtin:"):
        read = _builtin(source)
    elif (path := Path(source.path).expanduser()).exists() or path.suffix in READERS:
        read = _file(path)
    else:
        read = _hub(source)
    if not read.rows and not read.problems:
        raise DataError("holds no rows", where=source.path, key="data")
    return read


def _file(path: Path) -> RowsRead:
    if path.is_dir():
        raise DataError("is a folder, not a file", where=str(path), key="data", remedy="name a file in it")
    if not path.exists():
        raise DataError("there is no such file", where=str(path), key="data", remedy=_nearest(path))
    if path.suffix not in READERS:
        raise DataError(
            f"files of type {path.suffix or '(none)'} are not read", where=str(path), key="data",
            remedy=f"write it as {', '.join(READERS)}",
        )  # fmt: skip
    try:
        if path.stat().st_size == 0:
            raise DataError("is empty", where=str(path), key="data")
        return READERS[path.suffix](path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), key="data") from None


def _nearest(path: Path) -> str:
    import difflib

    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    if close:
        return f"Did you mean {path.parent / close[0]}?"
    return "Paths are relative to the current folder; a Hub dataset has no file ending."


def _jsonl(path: Path) -> RowsRead:
    read = RowsRead()
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                _take(read, f"{path}:{number}", partial(_object, raw, first=number == 1))
    return read


def _json(path: Path) -> RowsRead:
    try:
        loaded = _loads(_text(path.read_bytes(), first=True))
    except _UnreadableError as error:
        remedy = "one object a line is JSON Lines: name the file .jsonl" if "Extra data" in str(error) else None
        raise DataError(str(error), where=str(path), key="data", remedy=remedy) from None
    if not isinstance(loaded, list):
        lists = [key for key, value in loaded.items() if isinstance(value, list)] if isinstance(loaded, dict) else []
        inside = f"; the rows seem to be in {lists[0]!r}" if lists else ""
        raise DataError(
            f"must hold a list of objects{inside}", where=str(path), key="data",
            remedy="write the list alone, or one object a line as .jsonl",
        )  # fmt: skip
    read = RowsRead()
    for number, value in enumerate(loaded, start=1):
        _take(read, f"{path}: row {number}", partial(_checked, value))
    return read


def _csv(path: Path) -> RowsRead:
    """Bytes that are not UTF-8 are escaped while reading, so that they spoil their row and not the file."""
    csv.field_size_limit(sys.maxsize)
    read = RowsRead()
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if cells and header is None:
                    header = _header(cells, f"{path}:{line}")
                elif cells and header is not None:
                    _take(read, f"{path}:{line}", partial(_cells, header, cells))
                line = reader.line_num + 1
        except csv.Error as error:
            read.problems.append(Problem(f"is not CSV: {error}; nothing after it was read", f"{path}:{line}"))
    return read


def _header(cells: Sequence[str], where: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise DataError(f"the header names {', '.join(twice)} twice", where=where, key="data")
    if not all(_is_utf8(cell) for cell in cells):
        raise DataError("is not UTF-8", where=where, key="data")
    return list(cells)


def _cells(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, object]:
    if len(cells) > len(header):
        raise _UnreadableError("has more cells than the header has columns")
    if len(cells) < len(header):
        raise _UnreadableError(f"has no cell for {', '.join(header[len(cells) :])}")
    broken = [column for column, cell in zip(header, cells, strict=True) if not _is_utf8(cell)]
    if broken:
        raise _UnreadableError(f"is not UTF-8 in {', '.join(broken)}")
    return dict(zip(header, cells, strict=True))


def _is_utf8(cell: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in cell)


def _parquet(path: Path) -> RowsRead:
    import pyarrow
    from pyarrow import parquet

    try:
        values = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"is no Parquet file: {str(error).splitlines()[0]}", where=str(path), key="data") from None
    return _plain(values, str(path))


def _plain(values: Iterable[Mapping[str, object]], name: str) -> RowsRead:
    return RowsRead([Row(row, f"{name}: row {number}") for number, row in enumerate(values, start=1)])


def _hub(source: DataSource) -> RowsRead:
    from datasets import load_dataset

    split = source.split or "train"
    try:
        loaded = load_dataset(source.path, source.name, split=split)
    except Exception as error:
        # The library raises a dozen unrelated classes here, one a way in which a dataset cannot be had.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"is no file here, and could not be loaded from the Hub (split {split}): {reason}", where=source.path,
            key="data", remedy="check the name, data.name and data.split, and that this machine reaches the Hub",
        ) from None  # fmt: skip
    return _plain(loaded, source.path)


def _builtin(source: DataSource) -> RowsRead:
    from loraft.data.tickets import SPLITS, tickets

    name, split = source.path.removeprefix("builtin:"), source.split or "train"
    if name != "tickets":
        raise DataError(f"there is no builtin data {name!r}", where=source.path, key="data", remedy="builtin:tickets")
    if split not in SPLITS:
        raise DataError(
            f"has no split {split!r}", where=source.path, key="data.split", remedy=f"one of {', '.join(SPLITS)}"
        )
    return _plain(tickets(split), f"{source.path} {split}")


class _UnreadableError(Exception):
    """A row that cannot be read; the message says why."""


def _take(read: RowsRead, where: str, values: Callable[[], Mapping[str, object]]) -> None:
    try:
        read.rows.append(Row(values(), where))
    except _UnreadableError as error:
        read.problems.append(Problem(str(error), where))


def _text(raw: bytes, *, first: bool) -> str:
    if b"\0" in raw:
        raise _UnreadableError("holds a NUL byte")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"is not UTF-8 (byte {error.start + 1})") from None


def _object(raw: bytes, *, first: bool) -> Mapping[str, object]:
    return _checked(_loads(_text(raw, first=first)))


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise _UnreadableError(f"is not JSON: {error.msg} ({place})") from None
    except (RecursionError, ValueError):
        raise _UnreadableError("is not JSON that can be read: nested too deeply, or a number too long") from None


def _checked(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _UnreadableError("is not a JSON object")
    return value


READERS: Mapping[str, Callable[[Path], RowsRead]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet,
}  # fmt: skip
