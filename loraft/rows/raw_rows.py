"""Rows as they lie in files, each with the place it came from.

A row that cannot be read is a problem with file and line, beside the rows that can; a file that cannot be read at all
is an error. Rows come one at a time, not yet looked into, so that whoever only counts or skips them pays for nothing
else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraft.config.choices import TextBy
from loraft.errors import DataError, Problem
from loraft.figures import counted
from loraft.io.checksums import sha256_of, sha256_of_facts
from loraft.io.hub_access import unreached
from loraft.rows.class_names import named_classes
from loraft.rows.places import AS_TABLE, SourceFiles, files_of, lies_in_files
from loraft.rows.readers import ALL_TYPES, count_in, rows_in
from loraft.rows.row import RawRow, Row, look, source_error
from loraft.rows.tables import from_arrow

if TYPE_CHECKING:
    from loraft.config.sections import DataSource


@dataclass
class RowsRead:
    """The rows of a source, in order, and what is wrong with those that cannot be read.

    Attributes:
        notes: What there is to say about where they come from, a sentence each.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in the order of their first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row.values))

    def take(self, raw: RawRow) -> None:
        """Look into a row."""
        found = raw()
        if isinstance(found, Row):
            self.rows.append(found)
        else:
            self.problems.append(found)


def read_rows(source: DataSource, most: int | None = None) -> RowsRead:
    """Read every row of a source that its `limit` leaves, or the first `most` of them as they come.

    Raises:
        DataError: There is no such file, builtin or Hub dataset, it cannot be read, or it holds no row.
    """
    read = RowsRead()
    rows, read.notes = _opened(source, streaming=most is not None)
    for raw in islice(rows, _least(source.limit, most)):
        read.take(raw)
    if not read.rows and not read.problems:
        remedy = "Write rows into it, or name another file."
        if AS_TABLE in read.notes:
            remedy = "Its first line was taken for the header of a table (CSV); name plain text as a .txt file."
        raise source_error("holds no rows", source.path, remedy)
    seen = len(read.rows) + len(read.problems)
    if seen == source.limit and next(rows, None) is not None:
        read.notes.append(f"{source.path}: its first {counted(seen, 'row')} alone, as limit says: there are more")
    return read


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def raw_rows(source: DataSource, *, streaming: bool = False) -> Iterator[RawRow]:
    """The rows of a source as they come, not yet looked into, as many as its `limit` leaves.

    Where they are streamed, a Hub dataset comes over the line instead of being fetched first.

    Raises:
        DataError: There is no such file, builtin or Hub dataset, or it cannot be read; of a file at its first row.
    """
    rows, _ = _opened(source, streaming=streaming)
    return islice(rows, source.limit)


def _opened(source: DataSource, *, streaming: bool) -> tuple[Iterator[RawRow], list[str]]:
    """All rows of a source, and what there is to say about where they come from."""
    if source.path.startswith("builtin:"):
        rows = _plain(_builtin(source), f"{source.path} {source.split or 'train'}")
        return rows, [*_has_no_name(source)]
    if lies_in_files(source.path):
        found = files_of(source)
        return chain.from_iterable(map(rows_in, found.files)), [*found.notes, *_has_no_parts(source, found)]
    # Of one dataset several parts may be named, and a place is a row's name.
    name = " ".join(filter(None, (source.path, source.name, source.split)))
    return _plain(_coming(_hub(source, streaming=streaming), source), name), []


def _has_no_parts(source: DataSource, found: SourceFiles) -> Iterator[str]:
    """What to say where a part of files is named: of a file all rows are read, but for the sheets of a workbook."""
    if source.split is not None:
        yield f"{source.path}: split {source.split} is not used: files have none, and all of their rows are read"
    if found.files[0].kind != ".xlsx":
        yield from _has_no_name(source)


def _has_no_name(source: DataSource) -> Iterator[str]:
    if source.name is not None:
        yield f"{source.path}: name {source.name} is not used: it is of workbooks and of datasets of the Hub"


def count_rows(source: DataSource) -> int | None:
    """How many rows a source has, told without looking into them; None for a Hub dataset that does not say.

    Raises:
        DataError: As `raw_rows`.
    """
    if source.path.startswith("builtin:"):
        return _least(len(_builtin(source)), source.limit)
    if lies_in_files(source.path):
        if source.limit is not None:
            return sum(1 for _ in raw_rows(source))
        return sum(map(count_in, files_of(source).files))
    splits = getattr(_hub(source, streaming=True).info, "splits", None) or {}
    found = splits.get(source.split or "train")
    return _least(int(found.num_examples), source.limit) if found is not None and found.num_examples else None


def text_by_of(source: DataSource) -> TextBy | None:
    """What of a plain text is a row of a source; None where it is no plain text.

    Raises:
        DataError: As `raw_rows`.
    """
    if not lies_in_files(source.path):
        return None
    first = files_of(source).files[0]
    return first.text_by if first.is_text and first.text_by != "auto" else None


def is_read_whole(source: DataSource) -> bool:
    """Whether a source is a list that is read at once, so that its rows do not come one by one.

    Raises:
        DataError: As `raw_rows`.
    """
    return lies_in_files(source.path) and files_of(source).files[0].kind == ".json"


def rows_to_answer(path: Path, parameter: str) -> RowsRead:
    """The rows of a file that each get an answer; errors name it by the parameter it was given as.

    Raises:
        DataError: There is no such file, or it is no file of rows.
    """
    from loraft.config.sections import DataSource

    if not lies_in_files(str(path)):
        remedy = f"Write it as {ALL_TYPES}."
        raise DataError("is no file of rows", where=path, parameter=parameter, remedy=remedy)
    try:
        return read_rows(DataSource(path=str(path)))
    except DataError as error:
        problems = [replace(problem, key=None, parameter=parameter) for problem in error.problems]
        raise DataError.several(problems) from error


def content_of(source: DataSource, *, streaming: bool = False) -> str | None:
    """What tells whether the rows of a source are still the same: a sha256 of a file, a dataset's own fingerprint.

    None where nothing tells. A Hub dataset that is streamed is told by its name alone.

    Raises:
        DataError: As `raw_rows`.
    """
    if source.path.startswith("builtin:"):
        return hashlib.sha256(json.dumps(_builtin(source)).encode()).hexdigest()
    if lies_in_files(source.path):
        files = files_of(source).files
        for file in files:
            next(rows_in(file), None)  # raises what is wrong with the file as a whole
        first, *others = [sha256_of(file.path) for file in files]
        names = [file.name for file in files]
        return sha256_of_facts({"files": [*zip(names, (first, *others), strict=True)]}) if others else first
    return source.path if streaming else getattr(_hub(source, streaming=False), "_fingerprint", None)


def _plain(values: Iterable[Mapping[str, object]], name: str) -> Iterator[RawRow]:
    return (partial(look, f"{name}: row {number}", from_arrow, row) for number, row in enumerate(values, start=1))


def _hub(source: DataSource, *, streaming: bool) -> Any:
    from datasets import load_dataset

    split = source.split or "train"
    try:
        return load_dataset(source.path, source.name, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:
        # The library raises a dozen unrelated classes here, one a way in which a dataset cannot be had; those of the
        # system are of one that it did not find.
        message = f"is no file here, and could not be loaded from the Hub (split {split}): {_reason(error)}"
        remedy = "say which part is meant by data.name, and which split by data.split"
        if isinstance(error, OSError):
            remedy = f"check the name; perhaps {unreached()}"
        raise source_error(message, source.path, remedy) from None


def _coming(dataset: Any, source: DataSource) -> Iterator[Mapping[str, object]]:
    """The rows of a dataset of the Hub, with the names of classes that it numbers.

    They may break off: over the line, or in a damaged file.
    """
    named = named_classes(dataset.features.to_dict() if dataset.features else {})
    try:
        for row in dataset:
            yield row | {column: name(row[column]) for column, name in named.items()}
    except Exception as error:  # as above
        message, remedy = f"gives no more rows: {_reason(error)}", f"Try again; perhaps {unreached()}."
        raise source_error(message, source.path, remedy) from None


def _reason(error: Exception) -> str:
    """What the library says of an error in one line, without what it shows of Python."""
    from datasets.exceptions import DatasetGenerationError

    found = error.__cause__ if type(error) is DatasetGenerationError and error.__cause__ else error  # it says nothing
    return " ".join(str(found).partition("Example of usage")[0].split()) or type(found).__name__


def _builtin(source: DataSource) -> tuple[Mapping[str, object], ...]:
    from loraft.rows.synthetic_tickets import SPLITS, tickets

    name, split = source.path.removeprefix("builtin:"), source.split or "train"
    if name != "tickets":
        raise source_error(f"there is no builtin data {name!r}", source.path, "builtin:tickets")
    if split not in SPLITS:
        raise DataError(
            f"has no split {split!r}", where=source.path, key="data.split", remedy=f"one of {', '.join(SPLITS)}"
        )
    return tickets(split)
