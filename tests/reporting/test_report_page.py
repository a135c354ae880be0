"""The page is one file: nothing is loaded from elsewhere, nothing runs, and no text of a row is read as markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from loraft.reporting.model_findings import AnswerBeside, FigureBeside, HardRow, MovedLayer
from loraft.reporting.report_page import charts, page_of
from loraft.reporting.run_report import report_of
from tests.reporting.written_run import FALLING, OF_PAIRS, findings_with, records_of

EVIL = "<script>alert(1)</script>&\"'"
EMPTY = {"meta", "line", "circle", "polyline", "br"}


class Reader(HTMLParser):
    """The elements of a page, which are closed in their order, and their text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_has_no_scripts_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    hard = HardRow("a.jsonl:3", 9.0, EVIL, EVIL, EVIL)
    findings = findings_with(
        (-0.4, -0.2),
        answers=[AnswerBeside("a.jsonl:1", EVIL, EVIL, None, EVIL), AnswerBeside("a.jsonl:2", "q", "r", EVIL, "t")],
        hard_held_out=[hard], hard_learned=[hard], moved=[MovedLayer(EVIL, 1.0, None)], notes=(EVIL,),
    )  # fmt: skip
    page = page_of(report_of(records_of(tmp_path, FALLING, {10: 2.0, 20: 1.5}), findings))
    reader = read(page)
    tags = {tag for tag, _ in reader.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {name for _, attributes in reader.seen for name in attributes if name.startswith("on")}
    assert not {name for _, attributes in reader.seen for name in attributes} & {"href", "src", "style"}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert reader.text.count("<script>alert(1)") >= 8


def test_the_page_tells_what_happened_and_what_to_change(tmp_path: Path) -> None:
    report = report_of(records_of(tmp_path, [2.0] * 20, {10: 1.0, 20: 1.5}, norm=1.5))
    text = read(page_of(report)).text
    for said in ("training.num_train_epochs", "after step 10", "2.0 GB, 1.5 GB predicted", "20 of 30", "100 %"):
        assert said in text
    assert "loraft report RUN" in text, "what needs the model is not there, and how to have it is"


def test_every_chart_has_a_title_and_a_description_of_its_own(tmp_path: Path) -> None:
    found = report_of(records_of(tmp_path, FALLING, {10: 2.0}, figures={"accuracy": 0.5, "macro_f1": 0.25}))
    seen = read(page_of(found)).seen
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    charts = [attributes for tag, attributes in seen if tag == "svg"]
    assert len(charts) == 7
    assert len(ids) == len(set(ids)) == 14
    assert {each for chart in charts for each in str(chart["aria-labelledby"]).split()} == set(ids)


def test_figures_of_pairs_have_curves_and_each_is_written_as_what_it_is(tmp_path: Path) -> None:
    """An accuracy is a share and a margin none, in the facts, in the curves' titles and beside the base."""
    compared = {"margin": FigureBeside(0.0, 1.5, 1.5, 1.0, 2.0), "accuracy": FigureBeside(0.5, 0.75, 0.25, 0.1, 0.4)}
    records = records_of(tmp_path, FALLING, {10: 0.6, 20: 0.5}, figures=OF_PAIRS)
    report = report_of(records, findings_with(None, figures=compared))
    assert [each.title for each in charts(report)][:3] == ["Loss, nats", "Evaluation accuracy", "Evaluation margin"]
    assert [point for curve in charts(report)[2].curves for point in curve.points] == [(10, 1.5), (20, 1.5)]
    text = read(page_of(report)).text
    for said in ("75.00 % → 75.00 %", "1.5000 → 1.5000", "-1.0000 → -1.0000", "+1.0000 to +2.0000", "+25.00 %"):
        assert said in text
    assert report.as_dict()["evaluations"][1]["figures"] == OF_PAIRS


def test_a_long_run_makes_no_long_page(tmp_path: Path) -> None:
    page = page_of(report_of(records_of(tmp_path, [2.0] * 5000)))
    assert len(page) < 100_000
    assert "40 of 5,000 logged steps" in read(page).text


def test_what_the_model_tells_is_there(tmp_path: Path) -> None:
    figures = {"loss": FigureBeside(2.0, 1.5, -0.5, -0.6, -0.4), "accuracy": FigureBeside(0.5, 0.75, 0.25, 0.1, 0.4)}
    findings = findings_with(None, (2.0, 2.05), figures=figures, moved=[MovedLayer("3", 1.25, 0.02)])
    text = read(page_of(report_of(records_of(tmp_path), findings))).text
    for said in ("it helped", "75.00 %", "+10.00 % to +40.00 %", "-0.6000 to -0.4000", "+0.0500", "2.00 %"):
        assert said in text
    assert "loraft report RUN" not in text


def test_the_report_is_what_json_has(tmp_path: Path) -> None:
    found = report_of(records_of(tmp_path, FALLING, finished=False), findings_with((-0.4, -0.2))).as_dict()
    assert (found["state"], found["planned_steps"], found["clipped_share"]) == ("unfinished", 30, 0.0)
    assert len(found["steps"]) == 20
    assert found["findings"]["figures"]["loss"]["high"] == -0.2
    assert any("step 20 of 30" in note for note in found["notes"])
