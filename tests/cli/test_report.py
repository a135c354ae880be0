"""`loraft report` as a person runs it: a page, a few lines, JSON, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.running import loraft, refused
from tests.tiny import save_tiny
from tests.training.building import rows, write_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a run of it whose rows it held some of out."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", rows())
    (folder / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.25, max_length: 256}\n"
        "lora: {r: 4}\n"
        "training: {max_steps: 4, logging_steps: 2, output_dir: run}\n"
    )
    done = loraft("train", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "run/report.html").exists()
    assert re.search(r"report +run/report\.html\n", done.stdout), "the summary of the run names it"
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The same, to be written into."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.slow
def test_a_page_a_few_lines_and_the_same_as_json(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("report", "run", "--answers", "1", "--max-new-tokens", "2")
    done = loraft(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    for said in ("finished", "4 of 4", "95 % interval", "general text", "run/report.html", "change next"):
        assert said in done.stdout
    assert "Answers before and after" in (place / "run/report.html").read_text(encoding="utf-8")
    told = json.loads(loraft(*words, "--output", "page.html", "--json", cwd=place).stdout)
    assert (told["state"], told["page"], len(told["steps"])) == ("finished", "page.html", 2)
    assert told["findings"]["figures"].keys() == {"loss", "perplexity"}
    assert (place / "page.html").exists()


def test_quick_loads_no_model(place: Path) -> None:
    shutil.rmtree(place / "model")
    done = loraft("report", "run", "--quick", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" not in done.stdout


def test_what_cannot_be_reported_is_refused(place: Path) -> None:
    before = (place / "run/report.html").read_bytes()
    assert "nowhere" in refused(loraft("report", "nowhere", cwd=place))
    assert "--output" in refused(loraft("report", "run", "--output", "train.jsonl", cwd=place))
    assert "--data" in refused(loraft("report", "run", "--quick", "--data", "train.jsonl", cwd=place))
    assert "nofile.jsonl" in refused(loraft("report", "run", "--data", "nofile.jsonl", cwd=place))
    (place / "run/config.yaml").write_text("model: 3\n")
    assert "run/config.yaml" in refused(loraft("report", "run", cwd=place))
    assert (place / "run/report.html").read_bytes() == before


@pytest.mark.slow
def test_the_real_small_model_learned_and_forgot_little(tmp_path: Path, smollm2: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"model: {{name_or_path: {smollm2}, dtype: float32}}\n"
        "data: {train: {path: builtin:tickets, limit: 12}, eval: {path: builtin:tickets, split: eval, limit: 6}}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-3, logging_steps: 1,"
        " output_dir: run}\n"
    )
    assert loraft("train", "c.yaml", cwd=tmp_path).returncode == 0
    done = loraft("report", "run", "--answers", "1", "--max-new-tokens", "4", "--limit", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert found["figures"]["loss"]["high"] < 0, "two steps make these rows likelier, beyond doubt"
    assert 1.5 < found["forgotten"]["base"] < 3.5
    assert abs(found["forgotten"]["trained"] - found["forgotten"]["base"]) < 0.5
