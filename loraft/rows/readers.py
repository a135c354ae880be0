"""Files of rows, by their type: JSON Lines, JSON, CSV, TSV, Parquet, workbooks and plain texts, compressed or not.

A file is gone through once, a row at a time (a .json file is read whole), and a row is looked into only when it is
asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from loraft.io.row_types import COMPRESSIONS, ROW_TYPES, Content
from loraft.rows.json_rows import json_rows, jsonl_rows
from loraft.rows.opening import RowFile, compression_of, opened, told_where_unreadable
from loraft.rows.plain_texts import text_rows
from loraft.rows.row import RawRow, source_error
from loraft.rows.tables import csv_rows, parquet_rows, rows_of_parquet, xlsx_rows

Reader = Callable[[RowFile], Iterator[RawRow]]
READERS: Mapping[Content, Reader] = {
    "lines of JSON": jsonl_rows,
    "JSON": json_rows,
    "cells and commas": csv_rows,
    "cells and tabs": partial(csv_rows, separator="\t"),
    "Parquet": parquet_rows,
    "workbook": xlsx_rows,
    "text": text_rows,
}


def rows_in(file: RowFile) -> Iterator[RawRow]:
    """The rows of a file as they come.

    Raises:
        DataError: At the first row: there is no such file, it cannot be read, or its type is not known. Or later, where
            a compressed file is damaged.
    """
    check_file(file)
    with told_where_unreadable(file):
        yield from READERS[ROW_TYPES[file.kind].content](file)


def check_file(file: RowFile) -> None:
    """Refuse a file that is not there, is of another type, or has nothing in it.

    Raises:
        DataError: It cannot be read.
    """
    path = file.path
    if not path.exists():
        raise source_error("there is no such file", file.name, _nearest(path))
    if file.kind not in ROW_TYPES:
        end = compression_of(path)
        inside = f", {end}," if end else ""
        message = f"files of type {file.kind or '(none)'}{inside} are not read"
        raise source_error(message, file.name, f"write it as {ALL_TYPES}")
    with told_where_unreadable(file), opened(file) as stream:
        if not stream.peek(1):
            raise source_error("is empty", file.name, "Write rows into it, or name another file.")


ALL_TYPES = f"{', '.join(ROW_TYPES)}, or one of these with {', '.join(COMPRESSIONS)} behind it"
"""What files may be, in words."""


def _nearest(path: Path) -> str:
    beside = {entry.name.lower(): entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else {}
    close = difflib.get_close_matches(path.name.lower(), beside, n=1)
    near = f"Did you mean {path.parent / beside[close[0]]}? " if close else ""
    return f"{near}Paths are relative to the current folder; a Hub dataset has no file ending."


def count_in(file: RowFile) -> int:
    """How many rows a file has, told without looking into them.

    Raises:
        DataError: As `rows_in`.
    """
    if file.kind != ".parquet":
        return sum(1 for _ in rows_in(file))
    next(rows_in(file), None)  # raises what is wrong with the file
    return rows_of_parquet(file)
