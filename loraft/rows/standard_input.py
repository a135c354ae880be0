"""Rows that are piped in: read once, and kept in the cache as a file, for they are looked at more than once."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from loraft.errors import DataError
from loraft.io.kept_files import kept_file
from loraft.io.resources import ANOTHER_CACHE, disk_errors
from loraft.rows.opening import RowFile, opened, told_where_unreadable

STANDARD_INPUT = "-"
"""What a path is that means standard input."""
COMPRESSIONS: Mapping[bytes, str] = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst"}
TYPES: Mapping[bytes, str] = {b"PAR1": ".parquet", b"PK\x03\x04": ".xlsx", b"{": ".jsonl", b"[": ".json"}
"""How files begin: standard input has no name that would tell."""
AT_ONCE = 2**20


def standard_input(*, as_text: bool) -> Path:
    """The file that keeps what was piped in, whose name ends in its type; what begins like no other is a table.

    `as_text` says that it is plain text.

    Raises:
        DataError: Nothing was piped in, or it cannot be kept.
        DiskFullError: The disk filled up.
    """
    try:
        received, digest = _received(sys.stdin)
        return kept_file(digest[:16], f"rows{_end(received, as_text=as_text)}", lambda file: _copy(received, file))
    except OSError as error:
        message = f"what was piped in cannot be kept in the cache: {error.strerror}"
        raise DataError(message, where="standard input", key="data", remedy=ANOTHER_CACHE) from error


def _copy(received: Path, file: Path) -> None:
    shutil.copyfile(received, file)


@cache
def _room() -> TemporaryDirectory[str]:
    """A folder that goes when the process does."""
    return TemporaryDirectory(prefix="loraft-")


@cache
def _received(stream: TextIO | None) -> tuple[Path, str]:
    """All that a stream gives, in a file, and its sha256."""
    if stream is None or stream.closed or stream.isatty():
        message, remedy = "nothing is piped in", "Pipe the rows in, as in: cat rows.jsonl | loraft …; or name a file."
        raise DataError(message, where="standard input", key="data", remedy=remedy)
    path, digest = Path(_room().name) / f"received-{id(stream)}", hashlib.sha256()
    with disk_errors(path, remedy="Set TMPDIR to a folder that has room."), path.open("wb") as file:
        while part := stream.buffer.read(AT_ONCE):
            digest.update(part)
            file.write(part)
    if not path.stat().st_size:
        remedy = "Pipe the rows in, or name a file."
        raise DataError("is empty", where="standard input", key="data", remedy=remedy)
    return path, digest.hexdigest()


def _end(received: Path, *, as_text: bool) -> str:
    """How the name of a file with these bytes ends."""
    with received.open("rb") as file:
        head = file.read(8)
    compression = next((end for sign, end in COMPRESSIONS.items() if head.startswith(sign)), "")
    if compression:
        named = received.with_name(f"{received.name}{compression}")
        if not named.exists():
            named.symlink_to(received)
        packed = RowFile(named, "standard input")
        with told_where_unreadable(packed), opened(packed) as stream:
            head = stream.peek(8)
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = next((end for sign, end in TYPES.items() if head.startswith(sign)), ".txt" if as_text else ".csv")
    return f"{'.txt' if as_text else kind}{compression}"
