"""The report of a run by several processes: rank 0 writes it, once, and it tells what one process would have told."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.reporting import report_file
from loraft.reporting.report_page import page_of
from loraft.reporting.run_records import read_records
from loraft.reporting.run_report import RunReport, report_of
from tests.distributed.starting import TWO, Act, done


def writing_down(writers: Path) -> Act:
    """What a rank does before it begins: note down its number whenever it writes a report."""

    def before(rank: int) -> None:
        real = report_file.write_report

        def noted(report: RunReport, path: Path) -> None:
            with writers.open("a") as file:
                file.write(f"{rank}\n")
            real(report, path)

        report_file.write_report = noted

    return before


@pytest.mark.slow
def test_rank_0_writes_the_report_once_and_it_tells_of_both(place: Path) -> None:
    words, writers = ("train", "c.yaml", "lora.dropout=0"), place / "writers"
    both = done(place, *words, *TWO, before=writing_down(writers))
    assert both.returncode == 0, both.stderr
    assert writers.read_text() == "0\n"
    assert both.stdout.count("run/report.html") == 1, "and the summary names it once"
    records = read_records(place / "run")
    page = (place / "run/report.html").read_text(encoding="utf-8")
    assert "of the first of 2 processes" in page
    # Whoever reads it afterwards calls the run by another path.
    assert page.split("<dl>")[1] == page_of(report_of(records)).split("<dl>")[1]
    alone = done(place, *words, "training.output_dir=alone", "training.gradient_accumulation_steps=2")
    assert alone.returncode == 0, alone.stderr
    by_one = read_records(place / "alone")
    for one, other in zip(by_one.steps, records.steps, strict=True):
        assert (one.step, one.loss) == (other.step, pytest.approx(other.loss, rel=1e-4))
    for one, other in zip(by_one.evaluations, records.evaluations, strict=True):
        assert (one.step, one.loss) == (other.step, pytest.approx(other.loss, rel=1e-4))
