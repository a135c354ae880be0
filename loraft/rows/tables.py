"""Tables: CSV and TSV, Parquet, and the sheets of workbooks."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import islice
from typing import Any
from zipfile import ZipFile

from loraft.errors import DataError, LoraftError, lacking
from loraft.rows.class_names import named_classes
from loraft.rows.json_rows import RepeatedKeyError
from loraft.rows.opening import MOST_ROW_BYTES, RowFile, check_size, grown_too_much, most_unpacked, opened, seekable
from loraft.rows.row import RawRow, UnreadableError, look, remedy_of, source_error

ROWS_OF_PARQUET = 1000
"""Rows of a Parquet file that are decoded together."""
SEPARATORS: Mapping[str, str] = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What parts the cells of a .csv file; spreadsheets write semicolons in many countries."""
QUOTES = "A double quote opens a cell that another one closes; in such a cell, one that is text is written twice."
TRIED = 100
"""So many rows tell what parts the cells, where the header alone does not."""


def csv_rows(file: RowFile, separator: str | None = None) -> Iterator[RawRow]:
    """The rows of a table as text; what parts its cells the header tells, where it is not said.

    Bytes that are not UTF-8 are escaped while reading, so that they spoil their row and not the file.

    Raises:
        DataError: At the first row: its header cannot be used, or what parts the cells cannot be told. Or later, where
            a quote is not closed, or closed inside of a cell: which rows follow nobody can tell.
    """
    csv.field_size_limit(MOST_ROW_BYTES)
    separator = separator or _separator(file)
    with _characters(file) as text:
        taken: list[str] = []
        reader = csv.reader(_noted(_lines(text, file), taken), strict=True, delimiter=separator)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if cells and header is None:
                    header = _header(cells, f"{file.name}:{line}")
                elif cells and header is not None:
                    may_be_several = separator == "\t" and _each_a_row(taken, len(header))
                    read = _of_several if may_be_several else _cells
                    yield partial(look, f"{file.name}:{line}", read, header, cells)
                taken.clear()
                line = reader.line_num + 1
        except csv.Error as error:
            if "field larger" in str(error):
                check_size(MOST_ROW_BYTES + 1, file, line)
            message = f"is no table from here on: {error}".replace("\t", "\\t")
            raise source_error(message, f"{file.name}:{line}", QUOTES) from None


def _noted(lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _each_a_row(lines: Sequence[str], columns: int) -> bool:
    """Whether a row goes over lines of which each has the tabs of a row: a quote that opens one may be text."""
    return columns > 1 < len(lines) and all(line.count("\t") == columns - 1 for line in lines if line.strip())


def _of_several(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, object]:
    raise UnreadableError("may be several rows: a double quote opens a cell, and closes it in a later line")


@contextmanager
def _characters(file: RowFile) -> Iterator[TextIOWrapper]:
    with (
        opened(file) as stream,
        TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield text


def _lines(text: TextIOWrapper, file: RowFile) -> Iterator[str]:
    for number, line in enumerate(iter(partial(text.readline, MOST_ROW_BYTES + 1), ""), start=1):
        check_size(len(line), file, number)
        yield line


def _separator(file: RowFile) -> str:
    """What parts the cells: what the header has between its names, or of several that which the rows have too."""
    with _characters(file) as text:
        lines = [line for line in islice(_lines(text, file), TRIED) if line.strip()]
    plain = re.sub(r'"[^"]*"', "", lines[0]) if lines else ""
    there = [mark for mark in SEPARATORS if mark in plain]
    if len(there) < 2:
        return there[0] if there else ","
    fitting = [mark for mark in there if _parts(lines, mark)]
    if len(fitting) == 1:
        return fitting[0]
    marks = " and ".join(SEPARATORS[mark] for mark in fitting or there)
    message = f"the header has {marks}, and which of them part the columns cannot be told"
    remedy = "Put names with such a sign in double quotes, or separate by tabs and name the file .tsv."
    raise source_error(message, f"{file.name}:1", remedy)


def _parts(lines: Sequence[str], mark: str) -> bool:
    """Whether a mark parts each of the first rows into as many cells as the header."""
    try:
        header, *rows = csv.reader(lines, delimiter=mark)
    except csv.Error:
        return False
    return len({len(header), *map(len, rows)}) == 1


def _header(cells: Sequence[str], where: str) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        named = ", ".join(column.strip() or "(no name)" for column in twice)
        raise source_error(f"the header names {named} twice", where)
    if not all(_is_utf8(cell) for cell in cells):
        raise source_error("is not UTF-8", where, remedy_of("is not UTF-8"))
    return list(cells)


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


def parquet_rows(file: RowFile) -> Iterator[RawRow]:
    """The rows of a Parquet file, by their numbers.

    Raises:
        DataError: At the first row: it is no Parquet file, or one that cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    with seekable(file) as stream:
        try:
            table = parquet.ParquetFile(stream)
            readers = {field.name: _reader(field.type) for field in table.schema_arrow}
            readers |= named_classes(_features(table.schema_arrow))
            for batch in table.iter_batches(ROWS_OF_PARQUET):
                for values in batch.to_pylist():
                    number += 1
                    yield partial(look, f"{file.name}: row {number}", _columns, readers, values)
        except (pyarrow.ArrowException, ValueError) as error:  # no UTF-8, or a struct with two fields of one name
            raise source_error(f"cannot be read as Parquet: {str(error).splitlines()[0]}", file.name) from None


def _features(schema: Any) -> Mapping[str, Any]:
    """What the library `datasets` wrote down of the columns, where it wrote the file: a note that may be anything."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    for part in ("info", "features"):
        said = said.get(part) if isinstance(said, Mapping) else None
    return said if isinstance(said, Mapping) else {}


def rows_of_parquet(file: RowFile) -> int:
    """How many rows a Parquet file has, by what stands at its end."""
    from pyarrow import parquet

    with seekable(file) as stream:
        return int(parquet.ParquetFile(stream).metadata.num_rows)


Reader = Callable[[Any], object]
"""Makes of a value of Arrow, which may be None, what the same row would have in JSON."""


def _reader(arrow_type: Any) -> Reader:
    """What reads the values of a type: maps with text for keys become objects, and no object has nulls inside."""
    from pyarrow import types

    if types.is_map(arrow_type):
        key, item = arrow_type.key_type, _reader(arrow_type.item_type)
        key = key.value_type if types.is_dictionary(key) else key
        if types.is_string(key) or types.is_large_string(key) or types.is_string_view(key):
            return partial(_from_map, item)
        return partial(_from_pairs, _reader(key), item)
    if types.is_struct(arrow_type):
        return partial(_from_struct, {field.name: _reader(field.type) for field in arrow_type})
    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        return partial(_from_list, _reader(arrow_type.value_type))
    return _present


def _columns(readers: Mapping[str, Reader], values: Mapping[str, object]) -> Mapping[str, object]:
    return {column: readers[column](value) for column, value in values.items()}


def _from_map(item: Reader, pairs: Sequence[tuple[str, object]] | None) -> object:
    if pairs is None:
        return None
    for name, many in Counter(name for name, _ in pairs).items():
        if many > 1:
            raise RepeatedKeyError(name)
    return {name: item(value) for name, value in pairs if value is not None}


def _from_pairs(key: Reader, item: Reader, pairs: Sequence[tuple[object, object]] | None) -> object:
    """A map whose keys no object of JSON can have."""
    return None if pairs is None else [[key(name), item(value)] for name, value in pairs]


def _from_struct(fields: Mapping[str, Reader], value: Mapping[str, object] | None) -> object:
    if value is None:
        return None
    return {name: fields[name](inner) for name, inner in value.items() if inner is not None}


def _from_list(item: Reader, values: Sequence[object] | None) -> object:
    return None if values is None else [item(value) for value in values]


def from_arrow(values: Mapping[str, object]) -> Mapping[str, object]:
    """A row without the nulls inside its objects: Arrow gives every object of a column the keys of all of them."""
    return {column: _present(value) for column, value in values.items()}


def _present(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def xlsx_rows(file: RowFile) -> Iterator[RawRow]:
    """The rows of a sheet, by their numbers in it; cells are text, as the same table has them as CSV.

    Raises:
        DataError: At the first row: openpyxl is not installed, it is no workbook, or which sheet is meant is not said.
    """
    if problem := lacking("openpyxl", "an .xlsx file", where=file.name, key="data"):
        raise DataError.several([problem])
    with seekable(file) as stream, _told_where_no_workbook(file):
        with ZipFile(stream) as parts:
            if sum(part.file_size for part in parts.infolist()) > most_unpacked(file.path):
                raise grown_too_much(file)
        header: list[str] | None = None
        for number, row in enumerate(_sheet(_workbook(stream), file).iter_rows(), start=1):
            # Of one workbook several sheets may be named, and a place is a row's name.
            where = f"{' '.join(filter(None, (file.name, file.sheet)))}: row {number}"
            if all(cell.value is None for cell in row):
                continue
            if header is None:
                header = _header(_without_end([_cell(cell.value) for cell in row]), where)
            else:
                yield partial(look, where, _sheet_cells, header, row)


def _workbook(stream: Any) -> Any:
    from openpyxl import load_workbook

    with warnings.catch_warnings(action="ignore"):  # it tells what of a book's looks it does not know
        book = load_workbook(stream, read_only=True, data_only=True)
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # how large it says that it is may be wrong, and what lies beyond was not read
    return book


@contextmanager
def _told_where_no_workbook(file: RowFile) -> Iterator[None]:
    try:
        yield
    except LoraftError:
        raise
    except Exception as error:  # of a damaged one openpyxl raises whatever its parts stumble over
        why = " ".join(str(error).split()) or type(error).__name__
        remedy = "Save it as .xlsx without a password, or as .csv."
        raise source_error(f"is no .xlsx file: {why}", file.name, remedy) from None


def _sheet(book: Any, file: RowFile) -> Any:
    """The sheet that is meant: that which is named, or the only one with something in it."""
    names = ", ".join(book.sheetnames)
    if file.sheet is not None:
        if file.sheet not in book.sheetnames:
            message = f"has no sheet {file.sheet!r}; there is {names}"
            raise DataError(message, where=file.name, key="data.name", remedy="Name one of them.")
        return book[file.sheet]
    filled = [
        each for each in book.worksheets if any(cell.value is not None for row in each.iter_rows() for cell in row)
    ]
    if len(filled) > 1:
        message = f"has {len(filled)} sheets with rows: {', '.join(each.title for each in filled)}"
        remedy = "Name one of them, or save it as a file of its own."
        raise DataError(message, where=file.name, key="data.name", remedy=remedy)
    return filled[0] if filled else book.worksheets[0]


def _sheet_cells(header: Sequence[str], row: Sequence[Any]) -> Mapping[str, object]:
    failed = [each for each in row if each.value is not None and each.data_type == "e"]
    if failed:
        raise UnreadableError(f"has {failed[0].value} in {failed[0].coordinate}, where a formula failed")
    cells = _without_end([_cell(each.value) for each in row])
    return _cells(header, cells + [""] * (len(header) - len(cells)))


def _without_end(cells: list[str]) -> list[str]:
    """Cells without the empty ones behind the last: how wide a row is, is no matter of its own in a sheet."""
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _cell(value: object) -> str:
    """A cell as CSV has it: whole numbers without a point, days without a time."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")
