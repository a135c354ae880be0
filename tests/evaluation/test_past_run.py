"""Whether rows are still those that a run learned and those that it held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.source_rows import expand_sources
from loraft.dataset.token_cache import contents_of
from loraft.errors import DataError
from loraft.evaluation.past_run import PastRun
from loraft.io.sealed import sealed_text


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "held"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "run").mkdir()
    return tmp_path


def begun(folder: Path, **data: object) -> PastRun:
    """A run, with its manifest written as the files are now."""
    config = RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": {"train": "train.jsonl", **data}})
    train, held_out = map(contents_of, expand_sources(config.data))
    (folder / "run/manifest.json").write_text(json.dumps({"data": {"train": train, "eval": held_out}}))
    return PastRun(folder / "run", config)


def append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write('{"text": "three"}\n')


def test_files_as_they_were_are_passed_over(files: Path) -> None:
    for data in ({"eval": 0.5}, {"eval": "held.jsonl"}):
        assert list(begun(files, **data).about_held_out()) == []
    assert list(begun(files).about_rows(DataSource(path="absent.jsonl"))) == []


def test_a_share_held_out_of_what_has_changed_is_refused(files: Path) -> None:
    """Which rows the share is drawn from would be others: those that were learned would be measured as held out."""
    run = begun(files, eval=0.5)
    append(files / "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl: has changed since the run began(.|\n)*`data=FILE`"):
        list(run.about_held_out())


def test_a_file_of_its_own_that_has_changed_is_told(files: Path) -> None:
    run = begun(files, eval="held.jsonl")
    append(files / "train.jsonl")
    assert list(run.about_held_out()) == []
    append(files / "held.jsonl")
    (told,) = run.about_held_out()
    assert told.startswith("held.jsonl has changed since the run began")


def test_rows_that_cannot_be_read_from_here_are_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(files, eval=0.5)
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    with pytest.raises(DataError, match=r"cannot be read from here(.|\n)*the folder that the run was started in"):
        list(run.about_held_out())


def test_rows_that_were_learned_are_told_under_whatever_name(files: Path) -> None:
    run = begun(files, eval=0.5)
    (files / "copy.jsonl").write_bytes((files / "train.jsonl").read_bytes())
    (told,) = run.about_rows(DataSource(path="copy.jsonl"))
    assert told.startswith("the run was trained on the rows of copy.jsonl but for those that it held out")
    append(files / "copy.jsonl")
    assert list(run.about_rows(DataSource(path="copy.jsonl"))) == []


@pytest.mark.parametrize("written", [None, "{", "[]", '{"sealed": "by another", "data": {}}'])
def test_a_manifest_that_was_lost_is_told(files: Path, written: str | None) -> None:
    run = begun(files, eval=0.5)
    manifest = files / "run/manifest.json"
    manifest.unlink() if written is None else manifest.write_text(written)
    (told,) = run.about_held_out()
    assert told.startswith(f"{manifest} is missing or damaged")


def test_a_config_that_was_changed_tells_no_rows_that_were_held_out(files: Path) -> None:
    run = begun(files, eval=0.5)
    (files / "run/config.yaml").write_text(sealed_text("data:\n  eval: 0.5\n").replace("0.5", "0.2"))
    with pytest.raises(DataError, match=r"config\.yaml: was edited or damaged(.|\n)*`data=FILE`"):
        list(run.about_held_out())


@pytest.mark.parametrize("written", ['{"data": {"fingerprint": "x"}}', '{"data": {"train": 1}}'])
def test_where_nobody_wrote_down_what_the_files_were_nothing_is_said(files: Path, written: str) -> None:
    run = begun(files, eval=0.5)
    append(files / "train.jsonl")
    (files / "run/manifest.json").write_text(written)
    assert list(run.about_held_out()) == []


def test_rows_that_were_drawn_otherwise_are_not_measured_as_held_out(files: Path) -> None:
    """An earlier version drew others: it wrote nothing down of its draw, or something else."""
    run = begun(files, eval=0.5)
    manifest = files / "run/manifest.json"
    with pytest.raises(DataError, match=r"can no longer be told(.|\n)*`data=FILE`"):
        run.check_held_out("now")
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"data": {**written["data"], "held_out": "now"}}))
    run.check_held_out("now")
    with pytest.raises(DataError, match="can no longer be told"):
        run.check_held_out("otherwise")
    begun(files, eval="held.jsonl").check_held_out(None)
