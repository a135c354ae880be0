"""What a run wrote down is read as it stands, and what cannot be read is left out and counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from loraft.errors import RunFolderError
from loraft.reporting.run_records import read_records
from tests.reporting.written_run import FALLING, OF_PAIRS, records_of, write_run


def test_the_lines_of_a_run_become_steps_and_evaluations(tmp_path: Path) -> None:
    found = records_of(tmp_path, FALLING, {10: 2.5, 20: 2.2})
    assert [step.loss for step in found.steps] == FALLING
    assert [(each.step, each.loss, each.figures) for each in found.evaluations] == [(10, 2.5, {}), (20, 2.2, {})]
    assert (found.planned_steps, found.predicted_bytes, found.ranks) == (30, 1_500_000_000, 2)
    assert (found.base, found.device, found.finished, found.notes) == ("some/model", "a device", True, ())


def test_the_best_is_by_the_metric_of_the_config_and_the_lowest_by_the_loss(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path, FALLING, {5: 2.0, 10: 2.5}, figures={"accuracy": 0.5}, metric_for_best_model="accuracy"
    )
    text = (folder / "metrics.jsonl").read_text().replace('2.5, "eval_accuracy": 0.5', '2.5, "eval_accuracy": 0.9')
    (folder / "metrics.jsonl").write_text(text)
    found = read_records(folder)
    assert found.best is not None
    assert found.lowest is not None
    assert (found.best.step, found.lowest.step) == (10, 5)


def test_the_figures_of_pairs_are_read_as_those_of_classes_are(tmp_path: Path) -> None:
    (found,) = records_of(tmp_path, FALLING, {10: 0.5}, figures=OF_PAIRS).evaluations
    assert dict(found.figures) == OF_PAIRS


def test_lines_that_are_none_are_counted_and_what_is_left_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, FALLING)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 21, "loss": "low"}\n[1]\n{"step": 22,\n\xff\xfe\n')
    found = read_records(folder)
    assert len(found.steps) == 20
    assert len(found.notes) == 1
    assert found.notes[0].startswith("4 lines of metrics.jsonl")


def test_a_norm_that_is_null_or_as_earlier_versions_wrote_it_is_infinite(tmp_path: Path) -> None:
    metrics = write_run(tmp_path, FALLING, norm=math.inf) / "metrics.jsonl"
    old = read_records(tmp_path)
    metrics.write_text(metrics.read_text().replace("Infinity", "null"))
    assert [step.grad_norm for step in old.steps] == [math.inf] * 20
    assert read_records(tmp_path) == old


def test_a_manifest_that_is_damaged_or_of_before_says_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for text, told in (("{", 1), ('{"planned": 3, "ranks": "two"}', 0)):
        (folder / "manifest.json").write_text(text)
        found = read_records(folder)
        assert sum(note.startswith("manifest.json is missing or damaged") for note in found.notes) == told
        assert (found.planned_steps, found.predicted_bytes, found.ranks, found.base) == (None, None, 1, "some/model")


def test_a_run_that_logged_nothing_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [])
    with pytest.raises(RunFolderError) as error:
        read_records(folder)
    assert error.value.problems[0].where == str(folder / "metrics.jsonl")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(RunFolderError):
        read_records(folder)


@pytest.mark.parametrize(("step", "ended", "finished"), [(20, True, True), (20, False, False), (10, True, False)])
def test_a_run_that_was_gone_on_with_has_not_ended_though_its_result_is_there(
    tmp_path: Path, step: int, ended: bool, finished: bool
) -> None:
    place = write_run(tmp_path) / f"checkpoints/step-{step:06}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"state": {"step": step, "finished": ended}}))
    assert read_records(tmp_path).finished is finished
