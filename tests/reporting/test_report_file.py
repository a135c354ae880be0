"""The end of a run writes its report, which fails nothing and replaces nothing but a report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from loraft.errors import DataError, Interrupted, InvalidInputError, RunError
from loraft.events import Event, Note
from loraft.reporting import report_file
from loraft.reporting.report_file import check_report_file, reported, write_report
from loraft.reporting.run_records import read_records
from loraft.reporting.run_report import report_of
from tests.reporting.written_run import write_run


@pytest.mark.parametrize("error", [None, RunError("x"), Interrupted("x", signal_number=15)])
def test_however_a_run_ends_it_is_reported(tmp_path: Path, error: Exception | None) -> None:
    folder = write_run(tmp_path)
    with nullcontext() if error is None else pytest.raises(type(error)), reported(folder, lambda _: None) as told:
        assert told.at is None
        if error is not None:
            raise error
    assert "<svg" in (folder / "report.html").read_text()
    assert error is not None or told.at == folder / "report.html"


def test_what_was_refused_another_rank_and_a_run_without_steps_leave_no_report(tmp_path: Path) -> None:
    folder, empty = write_run(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInputError), reported(folder, lambda _: None):
        raise InvalidInputError("x")
    with reported(folder, lambda _: None, writes=False), reported(empty, lambda _: None):
        pass
    assert not (folder / "report.html").exists()
    assert list(empty.iterdir()) == []


def test_a_report_that_cannot_be_written_is_said_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = write_run(tmp_path), list[Event]()
    (folder / "report.html").write_text("my own page")
    with reported(folder, told.append) as found:
        pass
    assert found.at is None
    assert (folder / "report.html").read_text() == "my own page"
    (folder / "report.html").unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_file, "write_whole", full)
    with reported(folder, told.append):
        pass
    (folder / "metrics.jsonl").write_text("no line\n")
    with reported(folder, told.append):
        pass
    assert [type(event) for event in told] == [Note] * 3
    assert all("was not written" in event.text for event in told if isinstance(event, Note))


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    report = report_of(read_records(write_run(tmp_path / "run")))
    for _ in range(2):
        check_report_file(tmp_path / "page.html")
        write_report(report, tmp_path / "page.html")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for path in (tmp_path / "rows.jsonl", tmp_path, tmp_path / "no/page.html"):
        with pytest.raises(DataError) as error:
            check_report_file(path)
        assert error.value.problems[0].parameter == "output"
    with pytest.raises(DataError):
        write_report(report, tmp_path / "no/page.html")
