"""Methods beside one another: what is refused, what fails alone, and that all train on the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.errors import ConfigError, DiskFullError, InvalidInputError, ResourceError, RunError
from loraft.events import Event, Note, Progress
from loraft.io.asked_process import Answer
from loraft.planning import planned_memory
from tests.baselines.in_this_process import answering
from tests.training.building import tiny_config


@pytest.mark.slow
def test_each_method_is_asked_by_itself_after_all_were_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    seen: list[Event] = []
    config = tiny_config(tmp_path)
    found = api.compare_methods(config, methods=["qlora", "full"], steps=2, observer=seen.append)
    assert [(methods, folder is None) for _, methods, _, folder in asked] == [
        (("full", "qlora"), True), (("full",), False), (("qlora",), False),
    ]  # fmt: skip
    assert all(question[0] == config for question in asked), "the config comes through whole"
    assert [each.method for each in found.methods] == ["full", "qlora"]
    assert [each.outcome for each in found.methods] == ["measured", "measured"]
    assert (found.steps, found.rows, found.task) == (2, 8, "causal_lm")
    assert [event.done for event in seen if isinstance(event, Progress) and event.what.startswith("full: loss")] == [
        1,
        2,
    ]
    assert not any(folder.exists() for *_, folder in asked if folder is not None), "nothing is left"


@pytest.mark.parametrize(
    ("given", "parameter"),
    [({"methods": ["lora", "dora"]}, "methods"), ({"methods": []}, "methods"), ({"steps": 0}, "steps")],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], parameter: str
) -> None:
    asked = answering(monkeypatch)
    with pytest.raises(ConfigError) as refused:
        api.compare_methods(tiny_config(tmp_path), **given)
    assert refused.value.problems[0].parameter == parameter
    assert asked == []


def test_what_is_wrong_with_all_is_told_once_and_with_one_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch)
    config = tiny_config(tmp_path, lora__target_modules=["q_prj"], data__train=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InvalidInputError) as refused:
        api.compare_methods(config)
    messages = [problem.message for problem in refused.value.problems]
    assert len(asked) == 1, "nothing was trained"
    assert sum("(method" not in message for message in messages) == 1
    assert sum("(method lora and qlora)" in message for message in messages) == 1


@pytest.mark.slow
def test_what_does_not_fit_is_a_row_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(answer: Answer) -> Answer:
        return {**answer, "too_large": "the run needs about 9.0 GB"} if answer.get("method") == "full" else answer

    asked = answering(monkeypatch, small)
    found = api.compare_methods(tiny_config(tmp_path), methods=["full", "lora"], steps=1)
    full, lora = found.methods
    assert (full.outcome, full.measured, full.why) == ("does not fit", None, "the run needs about 9.0 GB")
    assert full.predicted["peak_bytes"] > 0
    assert lora.outcome == "measured"
    assert len(asked) == 2, "it was not tried"


def test_a_prediction_decides_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a plan that `check` would refuse the prediction is told all the same."""
    answering(monkeypatch)
    monkeypatch.setattr(planned_memory, "too_large", lambda *_: "too large")
    monkeypatch.setattr("loraft.baselines.measure_method.too_large", lambda *_: "too large")
    with pytest.raises(ResourceError) as refused:
        api.compare_methods(tiny_config(tmp_path))
    assert [problem.message for problem in refused.value.problems] == [
        f"method {method}: too large" for method in ("full", "lora", "qlora")
    ]  # fmt: skip


def ended(method: str) -> Any:
    """What a process would tell that ended in the middle of a method."""

    def changed(answer: Answer) -> Answer:
        if answer["asked"] != method or answer["kind"] != "measured":
            return answer
        return {"kind": "ended", "error": RunError("its process was killed").as_json()}

    return changed


@pytest.mark.slow
def test_one_that_fails_is_a_row_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ended("full"))
    seen: list[Event] = []
    found = api.compare_methods(tiny_config(tmp_path), methods=["full", "lora"], steps=2, observer=seen.append)
    assert [each.outcome for each in found.methods] == ["failed", "measured"]
    assert found.methods[0].why == "its process was killed, after 2 of 2 steps"
    assert Note("full failed: its process was killed, after 2 of 2 steps") in seen


def test_where_all_fail_the_comparison_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ended("lora"))
    with pytest.raises(RunError, match="method lora: its process was killed"):
        api.compare_methods(tiny_config(tmp_path), methods=["lora"], steps=1)


def test_a_loss_that_is_not_finite_is_a_failure_of_that_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    config = tiny_config(tmp_path, training__learning_rate=1e30, training__max_grad_norm=None)
    with pytest.raises(RunError) as failed:
        api.compare_methods(config, methods=["lora"], steps=6)
    assert "at step" in failed.value.problems[0].message


@pytest.mark.slow
def test_other_rows_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(answer: Answer) -> Answer:
        if answer["asked"] == "lora" and answer["kind"] == "measured":
            answer["cost"]["rows_digest"] = "another"
        return answer

    answering(monkeypatch, other)
    with pytest.raises(RunError, match="different rows"):
        api.compare_methods(tiny_config(tmp_path), methods=["full", "lora"], steps=1)


def test_what_failed_while_planning_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"kind": "ended", "error": DiskFullError("the disk filled up").as_json()}
    answering(monkeypatch, lambda _: full)
    with pytest.raises(RunError, match="the disk filled up"):
        api.compare_methods(tiny_config(tmp_path))


def test_who_asks_needs_none_of_the_heavy_libraries() -> None:
    """What is held here is not there for the processes."""
    code = "import sys, loraft.api; loraft.api.compare_methods; print({'torch', 'numpy', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_what_is_said_of_all_methods_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    seen: list[Event] = []
    config = tiny_config(tmp_path, training__learning_rate="auto")
    api.compare_methods(config, steps=1, observer=seen.append)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert sum(note.startswith("device cpu") for note in notes) == 1
    assert "training.learning_rate auto is 2e-05 for method full" in notes
    assert not any("path of this machine" in note for note in notes), "no adapter is kept"


@pytest.mark.slow
def test_real_processes(tmp_path: Path) -> None:
    """And none of them is this one: what it holds is not counted."""
    held = bytearray(os.urandom(1 << 20)) * 1500
    (lora,) = api.compare_methods(tiny_config(tmp_path), methods=["lora"], steps=2).methods
    assert lora.measured is not None, lora.why
    assert lora.measured.memory["peak_bytes"] < len(held)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_prediction_for_smollm2_is_within_15_percent_of_what_came() -> None:
    config = api_config()
    found = api.compare_methods(config, steps=2)  # with the holes that the heap gets meanwhile
    for each in found.methods:
        assert each.measured is not None, each.why
        off = each.predicted["peak_bytes"] / each.measured.memory["peak_bytes"] - 1
        assert abs(off) < 0.15, f"{each.method}: {100 * off:+.1f} %"


def api_config() -> Any:
    """The quickstart's."""
    from loraft.config.config_file import load_config

    return load_config(Path(__file__).parents[2] / "configs/quickstart.yaml")
