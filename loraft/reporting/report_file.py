"""The file of a report: written at the end of each run, and by whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loraft.errors import DataError, Interrupted, RunError
from loraft.events import Note, Observer
from loraft.io.atomic import write_whole
from loraft.io.paths import begins_with, check_output_file
from loraft.reporting.report_page import MARK, page_of
from loraft.reporting.run_records import read_records
from loraft.reporting.run_report import RunReport, report_of

NAME = "report.html"
"""What the file is called in the folder of a run."""
OUTPUT = "output"


def check_report_file(path: Path) -> None:
    """Refuse, before anything is read, a file that a report cannot be written to.

    Raises:
        DataError: It is a folder, there is no folder for it, or it holds something else than a report.
    """
    check_output_file(path, parameter=OUTPUT)
    if path.exists() and not begins_with(path, MARK):
        message = "is there already, and is no report of loraft"
        raise DataError(message, where=path, parameter=OUTPUT, remedy="Name another file.")


def write_report(report: RunReport, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    try:
        write_whole(path, page_of(report), errors="replace")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=path, parameter=OUTPUT) from error


@dataclass
class ReportAtTheEnd:
    """The report of a run that goes on: `at` is where it was written, once the run has ended and where it was."""

    at: Path | None = None


@contextmanager
def reported(folder: Path, observer: Observer, *, writes: bool = True) -> Iterator[ReportAtTheEnd]:
    """Write the report of a run's folder once the run has ended, however that was.

    No model is asked: it is what the run wrote down. A run that was refused before its first step is none, and a report
    that cannot be written is said and fails nothing; where another process writes the run's files nothing is done.
    """
    written = ReportAtTheEnd()
    try:
        yield written
    except (RunError, Interrupted):
        if writes:
            _write_at_the_end(folder, observer)
        raise
    if writes:
        written.at = _write_at_the_end(folder, observer)


def _write_at_the_end(folder: Path, observer: Observer) -> Path | None:
    """The page, where it was written."""
    path = folder / NAME
    if not (folder / "metrics.jsonl").exists():
        return None
    try:
        check_report_file(path)
        write_report(report_of(read_records(folder)), path)
    except Exception as error:  # whatever it is, what was trained is saved and stays so
        observer(Note(f"{path} was not written: {error}"))
        return None
    return path
