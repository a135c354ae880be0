"""Rows as they lie in files, each with the place it came from.

A row that cannot be read is a problem with file and line, beside the rows that can; a file that cannot be read at all
is an error. Rows come one at a time, not yet looked into, so that whoever only counts or skips them pays for nothing
else.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraft.errors import DataError, Problem
from loraft.io.checksums import sha256_of
from loraft.rows.readers import READERS, RawRow, Row, from_arrow, kind_of, look, rows_in

if TYPE_CHECKING:
    from loraft.config.sections import DataSource

URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]+):/")
"""A path that was read from a command line has one of its slashes left."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass
class RowsRead:
    """The rows of a source, in order, and what is wrong with those that cannot be read."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

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
    """Read every row of a source, or the first `most` as they come.

    Raises:
        DataError: There is no such file, builtin or Hub dataset, it cannot be read, or it holds no row.
    """
    read = RowsRead()
    for raw in islice(raw_rows(source, streaming=most is not None), most):
        read.take(raw)
    if not read.rows and not read.problems:
        remedy = "Write rows into it, or name another file."
        raise DataError("holds no rows", where=source.path, key="data", remedy=remedy)
    return read


def raw_rows(source: DataSource, *, streaming: bool = False) -> Iterator[RawRow]:
    """The rows of a source as they come, not yet looked into.

    Where they are streamed, a Hub dataset comes over the line instead of being fetched first.

    Raises:
        DataError: At the first row: there is no such file, builtin or Hub dataset, or it cannot be read.
    """
    if source.path.startswith("builtin:"):
        return _plain(_builtin(source), f"{source.path} {source.split or 'train'}")
    if (path := _file(source)) is not None:
        return rows_in(path)
    # Of one dataset several parts may be named, and a place is a row's name.
    name = " ".join(filter(None, (source.path, source.name, source.split)))
    return _plain(_hub(source, streaming=streaming), name)


def count_rows(source: DataSource) -> int | None:
    """How many rows a source has, told without looking into them; None for a Hub dataset that does not say.

    Raises:
        DataError: As `raw_rows`.
    """
    if source.path.startswith("builtin:"):
        return len(_builtin(source))
    if (path := _file(source)) is not None:
        return _rows_of_parquet(path) if kind_of(path) == ".parquet" else sum(1 for _ in rows_in(path))
    splits = getattr(_hub(source, streaming=True).info, "splits", None) or {}
    found = splits.get(source.split or "train")
    return int(found.num_examples) if found is not None and found.num_examples else None


def rows_to_answer(path: Path, parameter: str) -> RowsRead:
    """The rows of a file that each get an answer; errors name it by the parameter it was given as.

    Raises:
        DataError: There is no such file, or it is no file of rows.
    """
    from loraft.config.sections import DataSource

    if kind_of(path) not in READERS:
        remedy = f"Write it as {', '.join(READERS)}."
        raise DataError("is no file of rows", where=str(path), parameter=parameter, remedy=remedy)
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
    if (path := _file(source)) is not None:
        next(rows_in(path), None)  # raises what is wrong with the file as a whole
        return sha256_of(path)
    return source.path if streaming else getattr(_hub(source, streaming=False), "_fingerprint", None)


def _file(source: DataSource) -> Path | None:
    """The path of a source that is a file, or is meant to be one."""
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    _refuse_other_places(source.path)
    return path if kind_of(path) in READERS or not HUB_ID.fullmatch(source.path) else None


def _refuse_other_places(name: str) -> None:
    taken = "rows are read from a file, from a dataset of the Hub, or from builtin:tickets"
    if url := URL.match(name):
        remedy = {
            "file": f"Name the path alone: /{name[url.end() :].lstrip('/')}",
            "hf": f"Name the dataset alone: {name[url.end() :].lstrip('/').removeprefix('datasets/')}",
        }.get(url["scheme"], "Fetch the file first, and name it.")
        raise DataError(f"is a URL, and {taken}", where=name, key="data", remedy=remedy)
    if any(sign in name for sign in "*?["):
        found = sorted(glob.glob(str(Path(name).expanduser())))
        listed = f" (a config takes a list of them: [{', '.join(found[:3])}{', …' * (len(found) > 3)}])" * bool(found)
        remedy = f"Name each file by itself{listed}."
        raise DataError(f"is a pattern, and {taken}", where=name, key="data", remedy=remedy)


def _rows_of_parquet(path: Path) -> int:
    from pyarrow import parquet

    next(rows_in(path), None)  # raises what is wrong with the file
    return int(parquet.ParquetFile(path).metadata.num_rows)


def _plain(values: Iterable[Mapping[str, object]], name: str) -> Iterator[RawRow]:
    return (partial(look, f"{name}: row {number}", from_arrow, row) for number, row in enumerate(values, start=1))


def _hub(source: DataSource, *, streaming: bool) -> Any:
    from datasets import load_dataset

    split = source.split or "train"
    try:
        return load_dataset(source.path, source.name, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:
        # The library raises a dozen unrelated classes here, one a way in which a dataset cannot be had.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"is no file here, and could not be loaded from the Hub (split {split}): {reason}", where=source.path,
            key="data", remedy="check the name, data.name and data.split, and that this machine reaches the Hub",
        ) from None  # fmt: skip


def _builtin(source: DataSource) -> tuple[Mapping[str, object], ...]:
    from loraft.rows.synthetic_tickets import SPLITS, tickets

    name, split = source.path.removeprefix("builtin:"), source.split or "train"
    if name != "tickets":
        raise DataError(f"there is no builtin data {name!r}", where=source.path, key="data", remedy="builtin:tickets")
    if split not in SPLITS:
        raise DataError(
            f"has no split {split!r}", where=source.path, key="data.split", remedy=f"one of {', '.join(SPLITS)}"
        )
    return tickets(split)
