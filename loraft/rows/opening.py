"""Files of rows, opened: decompressed on the way to whatever reads them, and told where they cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from loraft.config.choices import Auto, TextBy
from loraft.errors import DataError
from loraft.io.row_types import COMPRESSIONS, ROW_TYPES
from loraft.rows.row import source_error


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Attributes:
        path: Where it lies on this machine.
        name: What messages call it: as the config names it, or the file inside of what that names.
        text_by: What of a plain text is a row.
        sheet: The sheet of a workbook.
    """

    path: Path
    name: str
    text_by: Auto | TextBy = "auto"
    sheet: str | None = None

    @property
    def kind(self) -> str:
        """Its type, whatever it is compressed by."""
        return kind_of(self.path)

    @property
    def is_text(self) -> bool:
        """Whether its rows are parts of a plain text."""
        return self.kind in ROW_TYPES and ROW_TYPES[self.kind].content == "text"


def _zstd(path: Path) -> io.RawIOBase:
    import pyarrow

    return cast("io.RawIOBase", pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


OPENERS: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstd}
"""What opens each of `COMPRESSIONS`, and tells where a file ends too early."""
DAMAGED = (EOFError, zlib.error)
MOST_ROW_BYTES = 64 << 20
"""The longest row that is read, in bytes or characters: what is longer is no row, and would be held several times."""
MOST_GROWTH, ANY_BYTES = 200, 100_000_000
"""How many times its size a compressed file may become, where it becomes more than so many bytes."""


def compression_of(path: PurePath) -> str | None:
    """What a file is compressed by, by the end of its name."""
    end = path.suffix.lower()
    return end if end in COMPRESSIONS else None


def kind_of(path: PurePath) -> str:
    """The type of a file, by the end of its name in small letters; what it is compressed by stands behind that."""
    return (path.with_suffix("") if compression_of(path) else path).suffix.lower()


@contextmanager
def opened(file: RowFile) -> Iterator[io.BufferedReader]:
    """Its bytes, decompressed."""
    compression = compression_of(file.path)
    if compression is None:
        with file.path.open("rb") as plain:
            yield plain
        return
    with (
        OPENERS[compression](file.path) as unpacked,
        io.BufferedReader(cast("Any", _Unpacked(unpacked, file))) as stream,
    ):
        yield stream


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, as it is read: refused where it becomes far more than rows ever do."""

    def __init__(self, unpacked: io.RawIOBase, file: RowFile) -> None:
        self._unpacked, self._file = unpacked, file
        self._left = most_unpacked(file.path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        taken = self._unpacked.readinto(buffer) or 0
        self._left -= taken
        if self._left < 0:
            raise grown_too_much(self._file)
        return taken


def most_unpacked(path: Path) -> int:
    """The most bytes that a compressed file may become."""
    return max(ANY_BYTES, MOST_GROWTH * path.stat().st_size)


def grown_too_much(file: RowFile) -> DataError:
    """What to say of a file that becomes more than that."""
    message = f"becomes more than {most_unpacked(file.path):,} bytes of {file.path.stat().st_size:,}, as rows never do"
    remedy = "Decompress it yourself, if it is meant, and name what comes out."
    return source_error(message, file.name, remedy)


def lines_of(stream: io.BufferedReader, file: RowFile) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1.

    Raises:
        DataError: A line is longer than a row may be.
    """
    for number, raw in enumerate(iter(partial(stream.readline, MOST_ROW_BYTES + 1), b""), start=1):
        check_size(len(raw), file, number)
        yield number, raw


def check_size(size: int, file: RowFile, line: int) -> None:
    """Refuse a row that is too long: of so many bytes or characters, or more.

    Raises:
        DataError: It is.
    """
    if size > MOST_ROW_BYTES:
        message = f"is longer than {MOST_ROW_BYTES:,} bytes, and no row"
        raise source_error(message, f"{file.name}:{line}", "Write shorter rows, one a line.")


@contextmanager
def seekable(file: RowFile) -> Iterator[BinaryIO]:
    """Its bytes, decompressed, for a format that is not read from its beginning to its end."""
    with opened(file) as stream:
        if compression_of(file.path) is None:
            yield stream
            return
        with TemporaryFile() as whole:
            shutil.copyfileobj(stream, whole)
            whole.seek(0)
            yield cast("BinaryIO", whole)


@contextmanager
def told_where_unreadable(file: RowFile) -> Iterator[None]:
    """Turn what is raised where a file cannot be read, or is damaged, into an error that names it.

    Raises:
        DataError: It cannot be read.
    """
    try:
        yield
    except (OSError, *DAMAGED) as error:
        reason = getattr(error, "strerror", None) or str(error)
        compression = compression_of(file.path)
        if compression is None or getattr(error, "errno", None):  # the system's own has a number
            raise source_error(f"cannot be read: {reason}", file.name) from None
        message = f"is damaged, cut short, or no {compression} file: {reason}"
        remedy = "Fetch it again, or compress it again."
        raise source_error(message, file.name, remedy) from None
