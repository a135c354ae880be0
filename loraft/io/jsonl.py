"""Files of JSON lines: rows that are there whole or not at all, and answers that are gone on with where they end.

A row of answers is the row that was asked, then what answers it, and `answered_by`, which tells answers of this model
with these settings from others. Rows come in the order of the questions, so that what is there already is a beginning;
it is compared with the questions byte by byte, and a line that was cut short is written anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from loraft.errors import DataError, Interrupted, Problem
from loraft.figures import counted
from loraft.io.paths import check_output_file
from loraft.io.resources import disk_errors
from loraft.io.row_types import ends_of_others

ANSWERED_BY = "answered_by"
"""The field that tells answers of one model from those of others; the last one of a row."""
OTHER_FILES = ends_of_others("lines of JSON", "JSON", "text")
OUTPUT = "output"
ANOTHER = "Name another file, or replace it with `overwrite`."
BATCHES_A_WINDOW = 8
"""Inside a window rows of like length share a batch."""
NO_ANSWER = "is no answer to the row of its number"


def _refusal(message: str, where: str | Path, remedy: str | None = ANOTHER) -> DataError:
    return DataError(message, where=where, parameter=OUTPUT, remedy=remedy)


@dataclass(frozen=True)
class AskedRows:
    """The rows that are asked, all of them in order, and what an answer adds to each.

    Attributes:
        added: The fields that an answer adds, `answered_by` aside.
        answered_by: What tells these answers from those of another model or other settings; None takes either.
    """

    rows: Sequence[Mapping[str, object]]
    added: Sequence[str]
    answered_by: str | None = None

    def answered(self, first: int, answers: Iterable[Sequence[object]]) -> list[dict[str, object]]:
        """The rows from number `first` on, each with the values of the fields that answer it."""
        return [
            {**self.rows[number], **dict(zip(self.added, values, strict=True)), ANSWERED_BY: self.answered_by}
            for number, values in enumerate(answers, start=first)
        ]

    def held(self, path: Path, content: bytes) -> tuple[int, int]:
        """How many whole answers a file holds, and where they end.

        Raises:
            DataError: It holds something else.
        """
        *whole, cut = content.split(b"\n")
        if len(whole) > len(self.rows):
            raise _refusal(f"holds {len(whole):,} rows, and there are {len(self.rows):,} to answer", path)
        for number, (line, row) in enumerate(zip(whole, self.rows, strict=False), start=1):
            self._refuse_another(f"{path}:{number}", line, row)
        if cut:
            beginning = self._beginning(self.rows[len(whole)]) if len(whole) < len(self.rows) else b""
            if not beginning or not (cut.startswith(beginning) or beginning.startswith(cut)):
                raise _refusal(NO_ANSWER, f"{path}:{len(whole) + 1}")
        return len(whole), len(content) - len(cut)

    def _refuse_another(self, where: str, line: bytes, row: Mapping[str, object]) -> None:
        told: object = None
        if line.startswith(self._beginning(row)):
            with suppress(ValueError):
                told = json.loads(line)
        if not isinstance(told, dict) or not {*self.added, ANSWERED_BY} <= told.keys():
            raise _refusal(NO_ANSWER, where)
        if self.answered_by is not None and told[ANSWERED_BY] != self.answered_by:
            raise _refusal("was answered by another model, or with other settings", where)

    def _beginning(self, row: Mapping[str, object]) -> bytes:
        """How the answer to a row begins, up to what was answered."""
        return _serialized(row)[:-1] + f', "{self.added[0]}": "'.encode()


@dataclass
class JsonLines:
    """A file of rows, open for this process alone.

    Attributes:
        rows: How many rows it holds.
        remedy: What helps where the disk is full.
        goes_on: Another process may go on after its rows.
    """

    path: Path
    file: FileIO
    rows: int = 0
    remedy: str = "Free some space, or evaluate without `output`."
    goes_on: bool = False

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows; where others go on after them, they are on disk before it ends.

        Raises:
            DiskFullError: The disk filled up; the rows before are whole.
        """
        content = b"".join(_serialized(row) + b"\n" for row in rows)
        with disk_errors(self.path, remedy=self.remedy, after=counted(self.rows, "row"), needed=len(content)):
            _write_all(self.file, content)
            if self.goes_on and _is_ordinary(self.file):
                os.fsync(self.file.fileno())
        self.rows += len(rows)

    def windows(self, total: int, size: int) -> Iterator[range]:
        """The windows of `size` rows that are left; the first may begin before the end, where a run was stopped."""
        for start in range(self.rows // size * size if self.rows < total else total, total, size):
            yield range(start, min(start + size, total))


def check_jsonl(path: Path, *, reads: Iterable[Path] = (), asked: AskedRows | None = None, overwrite: bool) -> None:
    """Refuse, before anything is loaded, a file that rows cannot be written to.

    Args:
        path: The file.
        reads: The files that are read to write it.
        asked: Whose answers it may hold already; None is a file that is written from its beginning.
        overwrite: What it holds does not matter.

    Raises:
        DataError: It holds something else, is read itself, has the name of another type of file, or there is no folder
            for it.
    """
    check_output_file(path, reads=reads, parameter=OUTPUT)
    if path.suffix.lower() in OTHER_FILES:
        remedy = f"Name it {path.with_suffix('').with_suffix('.jsonl').name}."
        raise _refusal(f"rows are written as JSON Lines, not as {path.suffix}", path, remedy)
    if not path.exists():
        return
    if asked is None:
        if path.stat().st_size and not overwrite:
            raise _refusal("holds something already", path)
    elif not path.is_file():  # a pipe or a device: what it holds cannot be read, or has no end
        raise _refusal("is no ordinary file", path, "Name a file to go on with.")
    elif not overwrite:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _refusal(f"cannot be read: {error.strerror}", path, None) from error
        replace(asked, answered_by=None).held(path, content)


def lost_fields(where: str, row: Mapping[str, object], added: Sequence[str]) -> list[Problem]:
    """What is wrong with a row that has a field of the name of one that an answer adds."""
    message, remedy = "an answer adds this field, and what the row has would be lost", "Rename it."
    return [Problem(message, where, name, remedy) for name in (*added, ANSWERED_BY) if name in row]


@contextmanager
def open_jsonl(path: Path) -> Iterator[JsonLines]:
    """The file, emptied and open; nobody else writes to it meanwhile.

    Raises:
        DataError: It cannot be written, or another process writes to it.
    """
    with _open(path, os.O_WRONLY, "wb") as file:  # of a pipe nobody but its reader holds the other end
        if _is_ordinary(file):
            file.truncate(0)
        yield JsonLines(path, file)


@contextmanager
def open_answers(path: Path, asked: AskedRows, *, overwrite: bool) -> Iterator[JsonLines]:
    """The file, opened to go on after the answers that it holds; nobody else writes to it meanwhile.

    Raises:
        DataError: It holds something else, cannot be written, or another process writes to it.
        Interrupted: By a signal; the rows so far are in the file.
    """
    with _open(path, os.O_RDWR, "r+b") as file:
        held, size = (0, 0) if overwrite else asked.held(path, file.read())
        file.truncate(size)
        file.seek(size)
        lines = JsonLines(path, file, held, "Free some space; the same command goes on.", goes_on=True)
        try:
            yield lines
        except KeyboardInterrupt as stop:
            message = f"stopped: {lines.rows:,} of {len(asked.rows):,} rows are in {path}"
            number = Interrupted.by(stop).signal_number
            raise Interrupted(message, signal_number=number, remedy="The same command goes on.") from None


def write_answers(
    path: Path,
    asked: AskedRows,
    answers: Callable[[range, int], Iterable[Sequence[object]]],
    *,
    batch_size: int,
    overwrite: bool,
) -> int:
    """Answer the rows that a file lacks, a window of some batches at a time, and tell how many it held.

    A window that was cut short is answered whole again, so that every row has the neighbours, and the answer, that it
    would have had. The answers of each are on disk before the next begins.

    Args:
        path: The file; one that was begun is gone on with.
        asked: The rows that are asked, and by whom they are answered.
        answers: From the rows of a window, and the first of them that is not in the file, to what answers that and all
            behind it.
        batch_size: How many rows are answered together.
        overwrite: Begin anew, whatever it holds.

    Raises:
        DataError: It holds something else, cannot be written, or another process writes to it.
        DiskFullError: The disk filled up; the rows before are whole.
        Interrupted: By a signal; the rows so far are in the file.
    """
    with open_answers(path, asked, overwrite=overwrite) as file:
        held = file.rows
        for rows in file.windows(len(asked.rows), batch_size * BATCHES_A_WINDOW):
            file.append(asked.answered(file.rows, answers(rows, file.rows)))
    return held


@contextmanager
def _open(path: Path, access: int, mode: str) -> Iterator[FileIO]:
    try:
        descriptor = os.open(path, access | os.O_CREAT, 0o666)
    except OSError as error:
        raise _refusal(f"cannot be written: {error.strerror}", path, None) from error
    with FileIO(descriptor, mode) as file:
        if _is_ordinary(file):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise _refusal("another process is writing to it", path, None) from error
        yield file


def _is_ordinary(file: FileIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _write_all(file: FileIO, content: bytes) -> None:
    """Write to the end of a file, in one call but where a disk is nearly full: all of it or nothing."""
    left, end = memoryview(content), file.tell() if file.seekable() else None
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def _serialized(row: Mapping[str, object]) -> bytes:
    """One line of JSON; what JSON does not know, such as a date of a Parquet file, is its text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:  # half a character in a field that nobody reads
        return json.dumps(row, default=str).encode("utf-8")
