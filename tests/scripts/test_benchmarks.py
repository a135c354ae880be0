"""The file of figures: what benchmarks add to it, and what the README and its picture take from it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "docs/benchmarks.jsonl"
FIELDS = [
    "date",
    "machine",
    "versions",
    "commit",
    "command",
    "measured",
    "unit",
    "value",
    "peer",
    "peer_value",
    "ratio",
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a script as a module, as it sees the others."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module


def lines(path: Path = RECORD) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_every_field_and_its_ratio() -> None:
    for line in lines():
        assert list(line) == FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", line["date"])
        assert (line["peer"] is None) == (line["ratio"] is None)
        if line["peer"]:
            assert line["ratio"] == pytest.approx(line["value"] / line["peer_value"], rel=0.05), line


def test_the_readme_s_table_is_in_the_file() -> None:
    table = (ROOT / "README.md").read_text().split("## Figures")[1].split("\n## ")[0]
    rows = re.findall(r"^\|[^|]+\| ([\d.]+) (\S+) \| ([\d.]+) (\S+) \|", table, re.MULTILINE)
    kept = {(line["value"], line["unit"].replace("processor s", "s"), line["peer_value"]) for line in lines()}
    assert len(rows) == 6
    for ours, unit, theirs, same_unit in rows:
        scale, named = (1000, "GB") if unit == "MB" else (1, unit)
        assert unit == same_unit
        assert (float(ours) / scale, named, float(theirs) / scale) in kept


def test_the_picture_shows_what_the_file_has(script: Any) -> None:
    """Where it does not, scripts/benchmark_picture.py draws it anew."""
    picture = script("benchmark_picture")
    bars = [*picture.speeds(lines()), *picture.memories(lines())]
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", picture.PICTURE.read_text())
    assert [text for text in shown if re.match(r"\d", text)] == [bar.said for bar in bars]
    assert len(bars) == 6
    for bar in bars:
        assert bar.long == pytest.approx(float(re.split("×?:", bar.said)[0]), abs=0.006)


@pytest.mark.slow
def test_the_picture_is_drawn_from_the_newest_lines(script: Any, tmp_path: Path) -> None:
    picture = script("benchmark_picture")
    last = next(line for line in lines() if line["measured"] == "merging in float32")
    newer = [*lines(), last | {"value": 1.0, "peer_value": 7.5, "ratio": 0.1333, "date": "2027-01-01"}]
    picture.draw(tmp_path / "drawn.svg", newer)
    assert "7.50×: 1 s, peft 7.5" in (tmp_path / "drawn.svg").read_text()
    assert [bar.name for bar in picture.memories(newer)] == ["LoRA training"], "that run told no memory"


def test_a_figure_is_appended_with_what_it_was_measured_on(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = script("benchmark_record")
    path = tmp_path / "figures.jsonl"
    monkeypatch.setattr(sys, "argv", ["/any/benchmark_x.py", "--steps", "3", "--json", str(path), "--kept"])
    record.record(path, [record.Figure("one", "tokens/s", 2000 / 3, "another", 333.3)], packages=["pytest", "no-such"])
    record.record(path, [record.gigabytes("two", 1_234_567_890)], machine="a GPU")
    record.record(None, [record.Figure("three", "s", 1)])
    one, two = lines(path)
    assert list(one) == FIELDS
    assert (one["value"], one["peer_value"], one["ratio"]) == (666.7, 333.3, 2.0)
    assert (two["value"], two["unit"], two["ratio"], two["machine"]) == (1.235, "GB", None, "a GPU")
    assert one["command"] == "scripts/benchmark_x.py --steps 3 --kept"
    assert {"torch", "pytest"} <= set(one["versions"])
    assert "no-such" not in one["versions"]


@pytest.mark.parametrize("place", ["no-folder/figures.jsonl", "."])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    script: Any, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    script("benchmark_record").add_option(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--json", str(tmp_path / place)])
    assert left.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_benchmarks_give_their_figures_the_names_that_the_file_has(script: Any) -> None:
    two: Any = defaultdict(lambda: 2.0)
    layers = {"seconds_a_step": two, "peak_bytes": two}
    generated = [script("benchmark_generate").Compared(size, 2.0, 1.0, 2.0, 1, 1) for size in (1, 8)]
    report = {"dtype": "bfloat16", "bare_products": two}
    options = argparse.Namespace(processor_time=True, adapter=None)
    figures = [
        *script("benchmark_train").figures(defaultdict(lambda: two), 16),
        *script("benchmark_layers").figures({"off": layers, "on": layers}),
        *script("benchmark_layers").figures_of_kept(two),
        *script("benchmark_generate").figures(report, generated, options),
        *script("benchmark_merge").figures({"bfloat16": {"median": defaultdict(lambda: two)}}),
    ]
    named = {(line["measured"], line["unit"], line["peer"]) for line in lines()}
    assert [figure for figure in figures if (figure.measured, figure.unit, figure.peer) not in named] == []
    assert len(figures) == 17
