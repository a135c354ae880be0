"""Rows that are piped in: read once, and kept in the cache as a file, for they are looked at more than once."""

from __future__ import annotations

import shutil
import sys
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

from loraft.io.called_files import call
from loraft.io.checksums import sha256_of
from loraft.io.kept_files import kept_file
from loraft.io.resources import ANOTHER_CACHE, disk_errors
from loraft.io.row_types import COMPRESSIONS, ROW_TYPES
from loraft.rows.opening import RowFile, opened, told_where_unreadable
from loraft.rows.row import source_error

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSource

STANDARD_INPUT, CALLED = "-", "standard input"
"""The path that means it, and what messages call it."""
AT_ONCE = 2**20


def with_input_kept(config: RunConfig) -> RunConfig:
    """The config with the file that keeps what was piped in where it names standard input.

    So a run writes down what it read, and whoever reads the rows again finds them.

    Raises:
        DataError: Nothing was piped in.
    """
    data = config.data
    if all(source.path != STANDARD_INPUT for source in (*data.train, *data.eval_sources)):
        return config

    def kept(source: DataSource) -> DataSource:
        if source.path != STANDARD_INPUT:
            return source
        path = standard_input(as_text=(source.text_by, data.text_by) != ("auto", "auto"))
        return source.model_copy(update={"path": str(path)})

    sources: dict[str, object] = {"train": tuple(map(kept, data.train))}
    if data.eval_sources:
        sources["eval"] = tuple(map(kept, data.eval_sources))
    return config.model_copy(update={"data": data.model_copy(update=sources)})


def standard_input(*, as_text: bool) -> Path:
    """The file that keeps what was piped in, unpacked; its name ends in its type: what begins like no other is a table.

    `as_text` says that it is plain text.

    Raises:
        DataError: Nothing was piped in, it is damaged, or it cannot be kept.
        DiskFullError: The disk filled up.
    """
    try:
        received = _received(sys.stdin)
        with received.open("rb") as file:
            head = file.read(AT_ONCE).removeprefix(b"\xef\xbb\xbf").lstrip()
        kind = next((end for end, kind in ROW_TYPES.items() if kind.begins and head.startswith(kind.begins)), ".csv")
        name = f"rows{'.txt' if as_text else kind}"
        kept = kept_file(sha256_of(received)[:16], name, partial(shutil.copyfile, received))
    except OSError as error:
        message = f"what was piped in cannot be kept in the cache: {error.strerror}"
        raise source_error(message, CALLED, ANOTHER_CACHE) from error
    call(kept, CALLED)
    return kept


@cache
def _room() -> TemporaryDirectory[str]:
    """A folder that goes when the process does."""
    return TemporaryDirectory(prefix="loraft-")


@cache
def _received(stream: TextIO | None) -> Path:
    """A file with all that a stream gives, unpacked."""
    if stream is None or stream.closed or stream.isatty():
        message, remedy = "nothing is piped in", "Pipe the rows in, as in: cat rows.jsonl | loraft …; or name a file."
        raise source_error(message, CALLED, remedy)
    path = Path(_room().name) / f"received-{id(stream)}"
    with disk_errors(path, remedy="Set TMPDIR to a folder that has room."):
        with path.open("wb") as file:
            shutil.copyfileobj(stream.buffer, file, AT_ONCE)
        path = _unpacked(path)
    if not path.stat().st_size:
        raise source_error("is empty", CALLED, "Pipe the rows in, or name a file.")
    return path


def _unpacked(path: Path) -> Path:
    """The file, or one with what is inside of it."""
    with path.open("rb") as file:
        head = file.read(8)
    compression = next((end for end, begins in COMPRESSIONS.items() if head.startswith(begins)), None)
    if compression is None:
        return path
    packed, plain = path.rename(path.with_name(f"{path.name}{compression}")), path.with_name(f"{path.name}.plain")
    file_of_rows = RowFile(packed, CALLED)
    with told_where_unreadable(file_of_rows), opened(file_of_rows) as stream, plain.open("wb") as unpacked:
        shutil.copyfileobj(stream, unpacked, AT_ONCE)
    packed.unlink()
    return plain
