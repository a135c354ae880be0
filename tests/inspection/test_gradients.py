"""Gradients by layer: against torch's own, and what their course is called."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraft.api import inspect_gradients, train
from loraft.inspection.gradients import BatchGradients, batch_gradients, course_of
from loraft.models.registry import FAMILIES
from loraft.training.loop import fit
from loraft.training.run_events import StepLogged
from loraft.training.start_batches import begin_from_rows
from tests.tiny import tiny_model
from tests.training.building import tiny_config, tiny_fit

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def measured(model: Any, scale: float = 1.0) -> BatchGradients:
    return batch_gradients(model, FAMILIES["llama"], trainable(model), lambda: model(IDS, labels=IDS).loss, scale)


def test_norms_are_those_of_torch() -> None:
    model = tiny_model("llama").train()
    found = measured(model)
    kept = model(IDS, labels=IDS, output_hidden_states=True)
    for states in kept.hidden_states:
        states.retain_grad()
    kept.loss.backward()
    assert found.loss == pytest.approx(kept.loss.item())
    for layer, states in zip(found.layers[:-1], kept.hidden_states[1:], strict=False):
        assert layer.stream_norm == pytest.approx(states.grad.norm().item(), rel=1e-5)
    for layer, module in zip(found.layers, model.get_submodule("model.layers").children(), strict=True):
        own = [each.grad.norm().item() for each in module.parameters() if each.grad is not None]
        assert layer.norm == pytest.approx(math.hypot(*own), rel=1e-5)
        assert layer.parameters == sum(each.numel() for each in module.parameters())
    outside = {each.name: each.norm for each in found.outside}
    assert outside.keys() == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    every = [each.grad.norm().item() for each in model.parameters() if each.grad is not None]
    assert found.norm == pytest.approx(math.hypot(*every), rel=1e-5)


def test_a_scaled_loss_gives_the_same_norms_and_leaves_no_gradient() -> None:
    model = tiny_model("llama").train()
    plain, scaled = measured(model), measured(model, 2.0**10)
    assert scaled.norm == pytest.approx(plain.norm, rel=1e-5)
    assert [each.stream_norm for each in scaled.layers] == pytest.approx(
        [e.stream_norm for e in plain.layers], rel=1e-5
    )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_below_the_first_trained_layer_nothing_is_computed() -> None:
    model = tiny_model("llama").train().requires_grad_(False)
    model.get_submodule("model.layers.1").requires_grad_(True)
    found = measured(model)
    assert [each.stream_norm is None for each in found.layers] == [True, False, False]
    assert [each.norm is None for each in found.layers] == [True, False, True]
    (course,) = found.courses
    assert (course.first, course.last) == (1, 2)
    model.requires_grad_(False)
    model.get_submodule("model.layers.2").requires_grad_(True)
    (course,) = measured(model).courses
    assert (course.ratio, course.course) == (None, None)


@pytest.mark.parametrize(
    ("first", "last", "course"),
    [
        (1e-5, 1.0, "vanishing"),
        (2e-3, 1.0, "steady"),
        (900.0, 1.0, "steady"),
        (1e4, 1.0, "exploding"),
        (math.nan, 1.0, "not finite"),
        (math.inf, 1.0, "not finite"),
        (1.0, 0.0, None),
    ],
)
def test_what_a_course_is_called(first: float, last: float, course: str | None) -> None:
    assert course_of(first, last)[1] == course


def test_gradients_that_vanish_are_found() -> None:
    """Layers that pass on a hundredth of what they read: without the residual path the gradient falls so, each time."""

    class Shrinking(nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            return hidden_states * 0.01

    model = tiny_model("llama").train()
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    for number in range(len(layers)):
        layers[number] = Shrinking()
    (course,) = measured(model).courses
    assert course.ratio == pytest.approx(1e-4, rel=1e-3)
    assert course.course == "vanishing"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_run_is_built_as_training_does(tmp_path: Path, method: str) -> None:
    report = inspect_gradients(tiny_config(tmp_path, method=method))
    found = report.gradients
    assert (report.method, len(report.rows)) == (method, 4)
    assert 0 < report.targets < report.tokens
    assert all(layer.norm and layer.stream_norm for layer in found.layers)
    assert bool(found.idle) == (method != "full")
    assert all("lora_A" in name for name in found.idle)
    assert bool(found.outside) == (method == "full")


@pytest.mark.slow
def test_checkpointed_layers_tell_the_same(tmp_path: Path) -> None:
    plain = inspect_gradients(tiny_config(tmp_path)).gradients
    again = inspect_gradients(tiny_config(tmp_path, training__gradient_checkpointing=True)).gradients
    assert [each.stream_norm for each in again.layers] == pytest.approx([each.stream_norm for each in plain.layers])
    assert [each.norm for each in again.layers] == pytest.approx([each.norm for each in plain.layers])


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("task", ["seq2seq_lm", "seq_cls"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    found = inspect_gradients(tiny_config(tmp_path, task=task)).gradients
    assert [course.stack for course in found.courses] == (
        ["encoder", "decoder"] if task == "seq2seq_lm" else ["encoder"]
    )
    assert all(course.ratio for course in found.courses)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("init", ["default", "eva", "pissa"])
def test_the_gradient_is_that_of_the_first_step_smoothed_labels_and_noise_too(tmp_path: Path, init: str) -> None:
    config = tiny_config(
        tmp_path,
        lora__init=init,
        lora__r=2,
        training__label_smoothing_factor=0.2,
        training__neftune_noise_alpha=5.0,
        training__max_steps=1,
        training__per_device_train_batch_size=12,
    )
    found = inspect_gradients(config).gradients
    logged: list[StepLogged] = []
    run, state = tiny_fit(config, lambda event: logged.extend([event] if isinstance(event, StepLogged) else []))
    begin_from_rows(run.plan, run.adapted, run.loss)
    fit(run, state)
    assert found.loss == pytest.approx(logged[0].loss, rel=1e-6)
    assert found.norm == pytest.approx(logged[0].grad_norm, rel=1e-5)


@pytest.mark.slow
def test_of_what_was_trained_it_is_not_said_how_it_begins(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, task="seq_cls", training__max_steps=1)
    begins = "with random numbers"
    assert begins in " ".join(inspect_gradients(config).notes)
    trained = train(config, observer=lambda _: None).saved
    assert begins not in " ".join(inspect_gradients(config, trained=str(trained)).notes)
