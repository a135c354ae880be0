"""NaN in a base or in what is trained: the error names the first module at fault, and a remedy that fits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraft import api
from loraft.errors import Interrupted, NonFiniteError
from loraft.events import Event
from loraft.reporting.report_page import page_of
from loraft.reporting.run_records import read_records
from loraft.reporting.run_report import report_of
from loraft.training import loop
from loraft.training.loop import SKIPPED_IN_A_ROW, fit
from loraft.training.run_events import StepDone, StepSkipped
from loraft.training.train_step import Trainer, first_output
from tests.training.building import tiny_config, tiny_fit
from tests.training.test_trainer import stop_at

MEASURED = {"tokens_per_second", "peak_bytes"}
DAMAGED = "the files that the run begins with are damaged"


def damage(folder: Path, name: str, value: float) -> None:
    """Put one number into a tensor of the base."""
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[5] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"])
def test_a_damaged_base_is_named_and_not_the_learning_rate(
    tmp_path: Path, name: str, method: str, value: float
) -> None:
    config = tiny_config(tmp_path, method=method)
    damage(tmp_path, name, value)
    with pytest.raises(NonFiniteError) as told:
        api.train(config)
    assert "is nan at step 1" in str(told.value)
    assert f"{name} holds NaN or infinity" in str(told.value)
    assert DAMAGED in str(told.value)
    assert "learning_rate" not in str(told.value)


@pytest.mark.parametrize(("task", "name"), [("seq2seq_lm", "encoder.block.1.layer.0.SelfAttention.q.weight"),
                                            ("seq_cls", "bert.encoder.layer.1.output.dense.weight")])  # fmt: skip
def test_a_damaged_base_is_named_for_every_task(tmp_path: Path, task: str, name: str) -> None:
    config = tiny_config(tmp_path, task=task)
    damage(tmp_path, name, float("nan"))
    with pytest.raises(NonFiniteError, match=f"{name} holds NaN or infinity"):
        api.train(config)


def test_weights_that_training_has_spoilt_are_told_with_the_learning_rate(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path))
    state.step = 3
    name = next(name for name in run.adapted.trainable if name.endswith("layers.2.mlp.up_proj.lora_B.default.weight"))
    run.adapted.trainable[name].data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as told:
        fit(run, state)
    assert "model.layers.2.mlp.up_proj.lora_B.default.weight holds NaN or infinity" in str(told.value)
    assert "a lower training.learning_rate" in str(told.value)


def test_outputs_that_overflow_are_named_where_the_weights_are_finite(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path))
    up, down = (run.adapted.loaded.model.get_submodule(f"model.layers.1.mlp.{part}_proj") for part in ("up", "down"))
    up.base_layer.weight.data.mul_(1e30)  # type: ignore[union-attr,operator]
    down.base_layer.weight.data.mul_(1e30)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteError, match=r"the weights are finite, and model\.layers\.1\.mlp\.\w+ is the first"):
        fit(run, state)


def test_a_model_whose_outputs_are_finite_has_no_module_at_fault(tmp_path: Path) -> None:
    run, _ = tiny_fit(tiny_config(tmp_path))
    batches: Any = [window.batches for window in run.plan.batches.windows(run.plan.data.train, 0, 0, (0, 0))]

    assert first_output(run.loss, (run.batch(part) for parts in batches for part in parts)) is None


def overflowing(monkeypatch: pytest.MonkeyPatch, *steps: int, backward: bool = False) -> None:
    """Have the loss of these steps be infinite, or with `backward` their gradient alone."""
    take = loop.take_step

    def take_step(run: Trainer, step: int, *given: Any, **kwargs: Any) -> float:
        objective = run.objective

        def overflow(*of: Any) -> Any:
            whole, parts = objective(*of)
            if backward:
                whole.register_hook(lambda gradient: gradient * torch.inf)
                return whole, parts
            return whole * torch.inf, [part * torch.inf for part in parts]

        if step in steps:
            run.objective = overflow  # type: ignore[method-assign]
        try:
            return take(run, step, *given, **kwargs)
        finally:
            run.objective = objective  # type: ignore[method-assign]

    monkeypatch.setattr(loop, "take_step", take_step)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, what is measured by the clock left out."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    """The weights are those of a run whose optimizer was not asked at that step; all else goes on."""
    told: list[StepSkipped] = []
    overflowing(monkeypatch, 2, backward=backward)
    config = tiny_config(tmp_path, training__on_nonfinite="skip", training__max_steps=3)
    run, state = tiny_fit(config, lambda event: told.append(event) if isinstance(event, StepSkipped) else None)
    taken: list[int] = []
    step = run.optimizer.step
    run.optimizer.step = lambda *_: taken.append(1) or step()  # type: ignore[method-assign,func-returns-value]
    fit(run, state)
    assert len(taken) == 2
    assert (state.step, state.skipped, state.skipped_in_a_row, state.finished) == (3, 1, 0, True)
    assert [event.step for event in told] == [2]
    assert "train.jsonl:" in told[0].reason
    lines = [line for line in lines_of(tmp_path / "run") if "eval_loss" not in line]
    assert [(line["step"], "loss" in line) for line in lines] == [(1, True), (2, False), (3, True)]
    assert (lines[1]["skipped"], lines[1]["reason"]) == (1, told[0].reason)
    read = sum(example.trained for example in run.plan.data.train)
    assert 0 < state.tokens < read, "what changed nothing was not trained on"
    assert all(parameter.isfinite().all() for parameter in run.adapted.trainable.values())


def test_what_was_trained_before_a_last_step_that_is_left_out_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    overflowing(monkeypatch, 3)
    config = tiny_config(tmp_path, training__on_nonfinite="skip", training__max_steps=3, training__logging_steps=10)
    run, state = tiny_fit(config, told.append)
    fit(run, state)
    losses = [event.loss for event in told if isinstance(event, StepDone)]
    (logged,) = [line for line in lines_of(tmp_path / "run") if "loss" in line]
    assert (len(losses), logged["step"]) == (2, 3)
    assert min(losses) <= logged["loss"] <= max(losses)
    assert state.last_loss == logged["loss"]
    assert 0 < logged["grad_norm"] < math.inf


@pytest.mark.slow
def test_a_run_that_goes_on_to_steps_that_are_left_out_logs_what_was_trained_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(monkeypatch, 3, 4)
    tiny_config(tmp_path)
    of_skipped = {"training__on_nonfinite": "skip", "training__max_steps": 4, "training__logging_steps": 10}
    whole, stopped = (
        tiny_config(tmp_path, training__output_dir=str(tmp_path / name), **of_skipped) for name in ("whole", "stopped")
    )
    api.train(whole)
    with pytest.raises(Interrupted):
        api.train(stopped, observer=stop_at(2))
    api.train(stopped, resume=True)
    lines = lines_of(tmp_path / "stopped")
    assert lines == lines_of(tmp_path / "whole")
    (logged,) = [line for line in lines if "loss" in line]
    assert logged["step"] == 4
    assert min(logged["loss"], logged["grad_norm"], logged["learning_rate"]) > 0


@pytest.mark.slow
def test_so_many_in_a_row_end_the_run_as_one_does_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = tiny_fit(tiny_config(tmp_path, training__on_nonfinite="skip", training__max_steps=20))
    overflowing(monkeypatch, 1, *range(3, 20))
    with pytest.raises(NonFiniteError) as told:
        fit(run, state)
    last = 2 + SKIPPED_IN_A_ROW
    assert f"at step {last}, on the rows" in str(told.value)
    assert told.value.problems[0].key == "training.on_nonfinite"
    assert [line["step"] for line in lines_of(tmp_path / "run") if "reason" in line] == [1, *range(3, last)]
    assert state.step == last - 1


@pytest.mark.slow
def test_a_run_of_which_no_step_can_be_taken_ends_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = tiny_fit(tiny_config(tmp_path, training__on_nonfinite="skip", training__max_steps=2))
    overflowing(monkeypatch, 1, 2)
    with pytest.raises(NonFiniteError, match="it is step 2 in a row"):
        fit(run, state)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
def test_a_scaled_loss_is_left_out_and_the_scale_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool
) -> None:
    """As in float16, where a gradient alone that overflows is met by the scale, and counts as no step left out."""
    run, state = tiny_fit(tiny_config(tmp_path, training__on_nonfinite="skip", training__max_steps=3))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    overflowing(monkeypatch, 2, backward=backward)
    fit(run, state)
    assert (state.step, state.skipped) == (3, 0 if backward else 1)
    assert run.scaler.get_scale() == 128.0
    norms = [line["grad_norm"] for line in lines_of(tmp_path / "run") if "grad_norm" in line]
    assert [norm is None for norm in norms] == ([False, True, False] if backward else [False, False])
    assert all(parameter.isfinite().all() for parameter in run.adapted.trainable.values())


@pytest.mark.slow
def test_a_gradient_that_overflows_by_itself_is_told_once_the_scale_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every step would be left out without a word, with a scale that goes to 0."""
    run, state = tiny_fit(tiny_config(tmp_path, training__max_steps=9))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    overflowing(monkeypatch, *range(2, 10), backward=True)
    with pytest.raises(NonFiniteError, match=r"the gradient is (nan|inf) at step 4"):
        fit(run, state)
    assert run.scaler.get_scale() == 1


def test_a_weight_that_is_not_finite_ends_the_run_at_once(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path, training__on_nonfinite="skip"))
    next(iter(run.adapted.trainable.values())).data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="at step 1,"):
        fit(run, state)


@pytest.mark.slow
def test_a_report_names_the_steps_that_were_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, 3)
    api.train(tiny_config(tmp_path, training__on_nonfinite="skip"))
    found = report_of(read_records(tmp_path / "run"))
    assert [each.step for each in found.left_out] == [3]
    assert "train.jsonl:" in " ".join(found.notes)
    assert "cannot be read" not in " ".join(found.notes)
    assert "left out" in page_of(found)
