"""What a model tells beside its base is what evaluating says, on the same rows, for every task and method."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.errors import DataError
from loraft.reporting.advice import advice
from loraft.reporting.run_records import read_records
from loraft.reporting.run_report import NOTHING_SAVED, RunReport
from tests.training.building import rows, tiny_config, write_rows

LITTLE: dict[str, Any] = {"answers": 2, "max_new_tokens": 3}


def trained(folder: Path, **given: Any) -> Path:
    """The folder of a tiny run that held out some of its rows, unless told otherwise."""
    settings: dict[str, Any] = {"data__eval": 0.25, "training__max_steps": 2, **given}
    return api.train(tiny_config(folder, **settings)).run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that others only read."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def told(run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Its report."""
    return api.report(run, output=tmp_path_factory.mktemp("page") / "page.html", **LITTLE)


@pytest.mark.slow
def test_the_end_of_a_run_writes_its_report_without_asking_the_model(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Answers before and after" not in page
    assert "predicted" in page
    assert read_records(run).planned_steps == 2


@pytest.mark.slow
def test_the_figures_are_those_of_evaluate(run: Path, told: RunReport) -> None:
    assert told.findings is not None
    evaluated = api.evaluate(str(run), baseline=True, metrics=["loss"])
    assert evaluated.baseline is not None
    for name in ("loss", "perplexity"):
        mine, apart = told.findings.figures[name], evaluated.differences[name]
        assert mine.trained == pytest.approx(evaluated.measured.figures[name], rel=1e-6)
        assert mine.base == pytest.approx(evaluated.baseline.figures[name], rel=1e-6)
        assert [mine.low, mine.high] == pytest.approx([apart.low, apart.high], rel=1e-5)
    assert told.findings.rows_read == evaluated.rows == 3


def test_answers_hard_rows_layers_and_what_was_forgotten_are_told(told: RunReport) -> None:
    found = told.findings
    assert found is not None
    assert len(found.answers) == 2
    assert found.answers[0].reference
    assert found.answers[0].base is not None
    for hard, count in ((found.hard_learned, 9), (found.hard_held_out, 3)):
        losses = [row.loss for row in hard]
        assert losses == sorted(losses, reverse=True)
        assert len(hard) == count
        assert all(row.row.rpartition("train.jsonl:")[2].isdigit() and "⟦" in row.text for row in hard)
    assert {row.row for row in found.hard_learned}.isdisjoint(row.row for row in found.hard_held_out)
    relative = [layer.relative or 0.0 for layer in found.moved]
    assert relative == sorted(relative, reverse=True)
    assert relative[-1] > 0
    assert found.forgotten is not None
    assert found.forgotten.base != found.forgotten.trained
    assert found.forgotten.tokens > 400


@pytest.mark.slow
def test_a_limit_is_spread_over_the_rows(run: Path, tmp_path: Path) -> None:
    found = api.report(run, output=tmp_path / "page.html", limit=2, answers=0).findings
    assert found is not None
    assert (found.rows_read, found.learned_read, found.learned_rows, found.answers) == (2, 2, 9, [])


@pytest.mark.slow
def test_rows_of_a_file_can_be_read_instead(run: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(5))
    found = api.report(run, output=tmp_path / "page.html", data=other, answers=0).findings
    assert found is not None
    assert (found.rows_read, found.learned_rows, found.hard_learned) == (5, 0, [])


def test_rows_that_have_changed_are_refused_and_the_report_stays(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "place")
    place = tmp_path / "place"
    config = (place / "run/config.yaml").read_text().replace(str(run.parent), str(place))
    (place / "run/config.yaml").write_text(config)
    write_rows(place / "train.jsonl", rows(13))
    before = (place / "run/report.html").read_bytes()
    with pytest.raises(DataError):
        api.report(place / "run", answers=0)
    assert (place / "run/report.html").read_bytes() == before
    assert api.report(place / "run", quick=True).findings is None


@pytest.mark.slow
def test_a_run_that_was_stopped_is_asked_by_its_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/adapter")
    found = api.report(tmp_path / "run", answers=0)
    assert found.state == "unfinished"
    assert found.findings is not None
    shutil.rmtree(tmp_path / "run/checkpoints")
    found = api.report(tmp_path / "run", answers=0)
    assert found.findings is None
    assert NOTHING_SAVED in found.notes


@pytest.mark.slow
def test_without_held_out_rows_nothing_is_compared_and_the_rest_is_told(tmp_path: Path) -> None:
    found = api.report(trained(tmp_path, data__eval=None), answers=2)
    assert found.findings is not None
    assert (found.findings.rows, found.findings.figures, found.findings.answers) == (None, {}, [])
    assert len(found.findings.hard_learned) == 10
    assert found.findings.forgotten is not None
    assert "none_held_out" in [each.rule for each in found.advice]
    assert any("data.eval is null" in note for note in found.notes)


@pytest.mark.slow
def test_a_classifier_stands_beside_the_shares_of_its_classes(tmp_path: Path) -> None:
    run = trained(tmp_path, task="seq_cls", training__max_steps=4)
    found = api.report(run, **LITTLE).findings
    assert found is not None
    assert (found.base, found.forgotten) == ("class shares", None)
    assert found.figures.keys() == {"loss", "accuracy", "macro_f1"}
    evaluated = api.evaluate(str(run))
    assert found.figures["accuracy"].trained == pytest.approx(evaluated.measured.figures["accuracy"])
    labels = [json.loads(line)["label"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    held_out = [int(row.row.rpartition(":")[2]) - 1 for row in found.hard_held_out]
    learned = [label for place, label in enumerate(labels) if place not in held_out]
    shares = {label: (learned.count(label) + 1) / (len(learned) + 3) for label in set(labels)}
    expected = -sum(math.log(shares[labels[place]]) for place in held_out) / len(held_out)
    assert found.figures["loss"].base == pytest.approx(expected)
    assert {row.label for row in found.hard_learned} <= set(labels)
    assert {answer.trained for answer in found.answers} <= set(labels)


@pytest.mark.slow
def test_an_encoder_decoder_is_compared_and_has_no_general_text(tmp_path: Path) -> None:
    found = api.report(trained(tmp_path, task="seq2seq_lm"), **LITTLE).findings
    assert found is not None
    assert found.forgotten is None
    assert found.figures["loss"].base != found.figures["loss"].trained


@pytest.mark.slow
def test_pairs_are_compared_with_their_base_and_their_model_on_rows_of_one_answer_too(tmp_path: Path) -> None:
    run = trained(tmp_path, task="preference")
    found, own = api.report(run, **LITTLE), api.evaluate(str(run), baseline=True)
    assert found.findings is not None
    assert {name: each.trained for name, each in found.findings.figures.items()} == pytest.approx(
        dict(own.measured.figures), abs=1e-6
    )
    assert found.findings.figures["loss"].base == pytest.approx(math.log(2), abs=1e-6)
    assert found.findings.forgotten is not None
    assert found.findings.answers[0].base is not None
    losses = [row.loss for row in found.findings.hard_learned]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[0] < 2, "of a pair, and not of a token of it"
    page = (run / "report.html").read_text(encoding="utf-8")
    for said in ("Evaluation margin", "Answers before and after", "– rejected –", "chosen reward"):
        assert said in page
    beside = api.report(run, data=write_rows(tmp_path / "other.jsonl", rows(4)), answers=0).findings
    assert beside is not None
    assert beside.rows_read == 4


@pytest.mark.slow
def test_of_a_model_that_was_trained_whole_the_base_is_loaded_anew(tmp_path: Path) -> None:
    run = trained(tmp_path, method="full", training__learning_rate=1e-3)
    found = api.report(run, **LITTLE)
    assert found.findings is not None
    adapted = trained(tmp_path, training__output_dir=str(tmp_path / "adapted"))
    beside = api.report(adapted, data=tmp_path / "train.jsonl", answers=0).findings
    both = api.report(run, data=tmp_path / "train.jsonl", answers=0).findings
    assert both is not None
    assert beside is not None
    assert both.figures["loss"].base == pytest.approx(beside.figures["loss"].base, rel=1e-5), "an adapter switched off"
    shutil.rmtree(tmp_path / "model")
    alone = api.report(run, answers=0)
    assert alone.findings is not None
    assert (alone.findings.base, alone.findings.figures) == (None, {})
    assert any("not at hand" in note for note in alone.notes)


@pytest.mark.slow
def test_a_run_that_goes_wrong_is_advised_by_what_it_measured(tmp_path: Path) -> None:
    """Rows that contradict what is held out, learned at a high rate: the evaluation loss rises from the first on."""
    held_out = write_rows(tmp_path / "eval.jsonl", rows(4))
    contrary = [{"messages": [*row["messages"][:1], {"role": "assistant", "content": "zzq xxv 99"}]} for row in rows()]
    tiny_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", contrary)
    settings = {"data__eval": str(held_out), "training__max_steps": 12, "training__eval_steps": 2}
    run = trained(tmp_path, **settings, training__learning_rate=0.05)
    found = api.report(run, answers=0)
    assert found.over_fitted_after is not None
    assert found.advice[0].rule == "over_fitted"
    assert list(advice(read_records(run), found.findings)) == list(found.advice)
