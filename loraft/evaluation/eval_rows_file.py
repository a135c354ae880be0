"""The file that the rows of an evaluation are written to, as they are evaluated: one line of JSON each."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from loraft.errors import DataError, DiskFullError
from loraft.grammar import counted
from loraft.rows.answer_file import append_whole, refuse_another_type

KEY = "--output"


@dataclass
class RowsFile:
    """An open file of rows.

    Attributes:
        path: Where it lies.
        file: It, open.
        rows: How many rows it holds.
    """

    path: Path
    file: FileIO
    rows: int = 0

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows, and hand them to the disk.

        Raises:
            DiskFullError: The disk filled up.
        """
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        try:
            append_whole(self.file, "".join(lines).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"the disk filled up after {counted(self.rows, 'row')}"
            remedy = "Free some space, or evaluate without --output."
            raise DiskFullError(message, where=str(self.path), remedy=remedy) from error
        self.rows += len(rows)


def check_rows_file(path: Path, data: str | None, *, overwrite: bool) -> None:
    """Refuse early, before a model is loaded, what cannot be written to.

    Args:
        path: Where rows are to be written.
        data: What the rows are read from, which may be a file.
        overwrite: Replace what it holds.

    Raises:
        DataError: It holds something already, is the file of the rows itself, or there is no folder for it.
    """
    where = str(path)
    if path.is_dir():
        raise DataError("is a folder", where=where, key=KEY, remedy="Name a file in it.")
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent}", where=where, key=KEY, remedy="Make it first.")
    refuse_another_type(path)
    if not path.exists():
        return
    if data is not None and (read := Path(data).expanduser()).exists() and path.samefile(read):
        raise DataError("is the file of the rows to evaluate on", where=where, key=KEY, remedy="Name another file.")
    if path.stat().st_size and not overwrite:
        message = "holds something already"
        raise DataError(message, where=where, key=KEY, remedy="Name another file, or replace it with --overwrite.")


@contextmanager
def open_rows_file(path: Path | None) -> Iterator[RowsFile | None]:
    """The file, emptied and open; nothing where no file is wanted.

    Raises:
        DataError: It cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path), key=KEY) from error
    with file:
        yield RowsFile(path, file)
