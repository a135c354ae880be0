"""Rows that are asked, and the file that answers are written to: a row is there whole or not at all, none twice.

A row is one line of JSON: the row that was asked, then what answers it, and `answered_by`, which tells answers of this
model with these settings from others. Rows come in the order of the questions, so that what is there already is a
beginning; it is compared with the questions byte by byte, and a line that was cut short is written anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from loraft.config.sections import DataSource
from loraft.errors import DataError, DiskFullError, Interrupted, Problem
from loraft.grammar import counted
from loraft.rows.raw_rows import RowsRead, read_rows
from loraft.rows.readers import READERS, kind_of

ANSWERED_BY = "answered_by"
"""The field that tells answers of one model from those of others; the last one of a row."""
KEY = "--output"
SOURCE = "--input"
ANOTHER = "Name another file, or replace it with --overwrite."


@dataclass
class AnswerFile:
    """An open file of answers.

    Attributes:
        path: Where it lies.
        file: It, open and locked.
        added: The fields that an answer adds to its row, `answered_by` aside.
        answered_by: What tells these answers from those of another model or other settings.
        rows: How many rows it holds.
    """

    path: Path
    file: FileIO
    added: Sequence[str]
    answered_by: str
    rows: int

    def append(self, answers: Sequence[tuple[Mapping[str, object], Sequence[object]]]) -> None:
        """Write the next rows, each with the values of the fields that answer it, and wait until they are on disk.

        Raises:
            DiskFullError: The disk filled up; the rows before are whole.
        """
        lines = (
            _serialized({**row, **dict(zip(self.added, values, strict=True)), ANSWERED_BY: self.answered_by}) + b"\n"
            for row, values in answers
        )
        try:
            append_whole(self.file, b"".join(lines))
            os.fsync(self.file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"the disk filled up after {counted(self.rows, 'row')}"
            remedy = "Free some space; the same command goes on."
            raise DiskFullError(message, where=str(self.path), remedy=remedy) from error
        self.rows += len(answers)


def append_whole(file: FileIO, content: bytes) -> None:
    """Write to the end of a file without a buffer, in one call but where a disk is nearly full: all of it or nothing.

    Raises:
        OSError: It could not be written.
    """
    left, end = memoryview(content), file.tell() if file.seekable() else None
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def rows_to_answer(path: Path) -> RowsRead:
    """The rows of a file that each get an answer.

    Raises:
        DataError: There is no such file, or it is no file of rows.
    """
    if kind_of(path) not in READERS:
        remedy = f"Write it as {', '.join(READERS)}."
        raise DataError("is no file of rows", where=str(path), key=SOURCE, remedy=remedy)
    try:
        return read_rows(DataSource(path=str(path)))
    except DataError as error:
        raise DataError.several([replace(problem, key=SOURCE) for problem in error.problems]) from error


def lost_fields(where: str, row: Mapping[str, object], added: Sequence[str]) -> list[Problem]:
    """What is wrong with a row that has a field of the name of one that an answer adds."""
    message, remedy = "an answer adds this field, and what the row has would be lost", "Rename it."
    return [Problem(message, where, name, remedy) for name in (*added, ANSWERED_BY) if name in row]


def windows_left(held: int, total: int, size: int) -> Iterator[range]:
    """The windows of `size` rows that are left; the first begins before `held` where a run was stopped inside it."""
    for start in range(held // size * size if held < total else total, total, size):
        yield range(start, min(start + size, total))


def check_answer_file(
    path: Path, rows: Sequence[Mapping[str, object]], questions: Path, added: Sequence[str], *, overwrite: bool
) -> None:
    """Refuse, before anything is loaded, a file that answers to the `rows` of `questions` cannot be written to.

    Raises:
        DataError: It holds something else, is the file of the questions itself, has the name of another type of file,
            or there is no folder for it.
    """
    if path.exists() and path.samefile(questions):
        raise DataError("is the file of the rows themselves", where=str(path), key=KEY, remedy="Name another file.")
    if path.is_dir():
        raise DataError("is a folder", where=str(path), key=KEY, remedy="Name a file in it.")
    if path.exists() and not path.is_file():  # a pipe or a device: what it holds cannot be read, or has no end
        raise DataError("is no ordinary file", where=str(path), key=KEY, remedy="Name a file to go on with.")
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent}", where=str(path), key=KEY, remedy="Make it first.")
    refuse_another_type(path)
    if path.exists() and not overwrite:
        _held(path, _read(path), rows, added, None)


def refuse_another_type(path: Path) -> None:
    """Refuse a file for rows whose name says that it is no JSON Lines, and who opens it would find that.

    Raises:
        DataError: It is called .csv or .parquet.
    """
    if kind_of(path) in (".csv", ".parquet"):
        message = f"rows are written as JSON Lines, not as {path.suffix}"
        remedy = f"Name it {path.with_suffix('.jsonl').name}."
        raise DataError(message, where=str(path), key=KEY, remedy=remedy)


@contextmanager
def open_answer_file(
    path: Path, rows: Sequence[Mapping[str, object]], added: Sequence[str], answered_by: str, *, overwrite: bool
) -> Iterator[AnswerFile]:
    """The file, opened to go on after the rows that it holds; nobody else writes to it meanwhile.

    Args:
        path: Where it lies, or will.
        rows: The rows that are asked, all of them.
        added: The fields that an answer adds.
        answered_by: What tells these answers from others.
        overwrite: Begin anew, whatever it holds.

    Raises:
        DataError: It holds something else, cannot be written, or another process writes to it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path), key=KEY) from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError("another process is writing to it", where=str(path), key=KEY) from error
        held, size = (0, 0) if overwrite else _held(path, file.read(), rows, added, answered_by)
        file.truncate(size)
        file.seek(size)
        answers = AnswerFile(path, file, added, answered_by, held)
        try:
            yield answers
        except KeyboardInterrupt as stop:
            message = f"stopped: {answers.rows:,} of {len(rows):,} rows are in {path}"
            number = getattr(stop, "signal_number", signal.SIGINT)
            raise Interrupted(message, signal_number=number, remedy="The same command goes on.") from None


def _held(
    path: Path, content: bytes, rows: Sequence[Mapping[str, object]], added: Sequence[str], answered_by: str | None
) -> tuple[int, int]:
    """How many whole answers to `rows` there are, and where they end; without `answered_by`, of whichever model.

    Raises:
        DataError: There is something else.
    """
    lines = content.split(b"\n")
    whole, cut = lines[:-1], lines[-1]
    if len(whole) > len(rows):
        message = f"holds {len(whole):,} rows, and there are {len(rows):,} to answer"
        raise DataError(message, where=str(path), key=KEY, remedy=ANOTHER)
    for number, (line, row) in enumerate(zip(whole, rows, strict=False), start=1):
        _refuse_another(f"{path}:{number}", line, row, added, answered_by)
    if cut:
        beginning = _beginning(rows[len(whole)], added) if len(whole) < len(rows) else b""
        if not beginning or not (cut.startswith(beginning) or beginning.startswith(cut)):
            message = "is no answer to the row of its number"
            raise DataError(message, where=f"{path}:{len(whole) + 1}", key=KEY, remedy=ANOTHER)
    return len(whole), len(content) - len(cut)


def _refuse_another(
    where: str, line: bytes, row: Mapping[str, object], added: Sequence[str], answered_by: str | None
) -> None:
    told: object = None
    if line.startswith(_beginning(row, added)):
        try:
            told = json.loads(line)
        except ValueError:
            told = None
    if not isinstance(told, dict) or not {*added, ANSWERED_BY} <= told.keys():
        raise DataError("is no answer to the row of its number", where=where, key=KEY, remedy=ANOTHER)
    if answered_by is not None and told[ANSWERED_BY] != answered_by:
        message = "was answered by another model, or with other settings"
        raise DataError(message, where=where, key=KEY, remedy=ANOTHER)


def _beginning(row: Mapping[str, object], added: Sequence[str]) -> bytes:
    """How the answer to a row begins, up to what was answered."""
    return _serialized(row)[:-1] + f', "{added[0]}": "'.encode()


def _serialized(row: Mapping[str, object]) -> bytes:
    """One line of JSON; what JSON does not know, such as a date of a Parquet file, is its text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:  # half a character in a field that nobody reads
        return json.dumps(row, default=str).encode("utf-8")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), key=KEY) from error
