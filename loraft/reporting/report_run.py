"""Report on a run that has trained something, or still does: `loraft.report`."""

from __future__ import annotations

from pathlib import Path

from loraft.config.sections import DataSource
from loraft.evaluation.past_run import PastRun, run_in
from loraft.events import Observer, ignored
from loraft.models.remote_code import as_trusted
from loraft.reporting.ask_model import AskedOfModel, findings_of
from loraft.reporting.report_file import NAME, check_report_file, write_report
from loraft.reporting.run_records import has_result, read_records
from loraft.reporting.run_report import NOTHING_SAVED, RunReport, report_of
from loraft.training.checkpoint import newest_checkpoint

AS_ASKED = AskedOfModel()


@as_trusted
def report(
    run: str | Path,
    *,
    output: str | Path | None = None,
    quick: bool = False,
    data: DataSource | str | Path | None = None,
    limit: int = AS_ASKED.limit,
    answers: int = AS_ASKED.answers,
    max_new_tokens: int = AS_ASKED.max_new_tokens,
    batch_size: int = AS_ASKED.batch_size,
    trust_remote_code: bool = False,
    observer: Observer = ignored,
) -> RunReport:
    """Tell whether a run did any good, and write it down as a page.

    Args:
        run: The folder of a run, of one of its checkpoints or of its adapter.
        output: The file of the page; None is `report.html` in the folder of the run.
        quick: Load no model: tell what the run wrote down.
        data: Rows to compare the model with its base on; None takes those that the run held out.
        limit: At most so many rows are read, of those held out and of those that were learned.
        answers: So many answers are shown before and after.
        max_new_tokens: The most tokens of an answer.
        batch_size: How many rows at a time.
        trust_remote_code: Run the code that the model brings.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: There is no run, it logged nothing, its rows or its base cannot be read, or the page cannot
            be written.
        RunError: While the model reads; a page that was there stays as it was.
    """
    past = run_in(Path(run))
    path = past.folder / NAME if output is None else Path(output)
    check_report_file(path)
    records = read_records(past.folder)
    target, notes = None if quick else _saved(past, Path(run), finished=records.finished), list[str]()
    if not quick and target is None:
        notes.append(NOTHING_SAVED)
    findings = None
    if target is not None:
        rows = data if isinstance(data, DataSource | None) else DataSource(path=str(data))
        findings = findings_of(past, target, AskedOfModel(rows, limit, answers, max_new_tokens, batch_size), observer)
    found = report_of(records, findings, notes=notes)
    write_report(found, path)
    return found


def _saved(past: PastRun, named: Path, *, finished: bool) -> Path | None:
    """What is asked: what was named inside the run, its result, or its newest checkpoint; None where there is none."""
    if named.resolve() != past.folder.resolve():
        return named
    newest = None if finished else newest_checkpoint(past.folder / "checkpoints")[0]
    return newest or (past.folder if has_result(past.folder) else None)
