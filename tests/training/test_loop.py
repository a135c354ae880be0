"""fit(): gradients, windows, evaluation and what stops a run, on a tiny model and real files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.errors import NonFiniteError
from loraft.events import Event, Note
from loraft.inference.requests import GenerationRequest
from loraft.tasks.batches import BatchLayout, collate_texts
from loraft.training import train_step
from loraft.training.built_model import build_model
from loraft.training.loop import fit
from loraft.training.run_events import Evaluated, StepDone, StepLogged
from loraft.training.train_step import evaluate_loss
from tests.training.building import close, contrary, recorded, rows, tiny_config, tiny_fit, write_rows

SETUPS = {"4x1": (4, 1), "2x2": (2, 2), "1x4": (1, 4)}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("setup", ["2x2", "1x4"])
def test_c9_accumulation_gives_the_gradient_of_the_whole(tmp_path: Path, setup: str, packing: str) -> None:
    """C9, causal, one rank: the same four rows of uneven lengths in one, two or four batches."""
    gradients = {}
    for name in ("4x1", setup):
        size, accumulation = SETUPS[name]
        config = tiny_config(
            tmp_path, data__packing=packing, training__per_device_train_batch_size=size, training__max_steps=3,
            training__gradient_accumulation_steps=accumulation, training__max_grad_norm=None,
        )  # fmt: skip
        gradients[name] = recorded(config)
    assert len(gradients["4x1"]) == 3
    for whole, parts in zip(gradients["4x1"], gradients[setup], strict=True):
        close(parts, whole, 1e-5)


def test_c9_the_gradient_is_the_mean_over_all_trained_tokens(tmp_path: Path) -> None:
    """Against transformers: summed losses of single rows, divided once."""
    config = tiny_config(tmp_path, training__max_steps=1, training__max_grad_norm=None, data__packing="auto")
    ours = recorded(config)[0]
    run, _ = tiny_fit(config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in run.adapted.trainable.items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    total, tokens = torch.zeros(()), 0
    base = run.adapted.loaded.model.train()
    base.set_attn_implementation("sdpa")
    for index in run.plan.batches.epoch(0)[0]:
        row = run.plan.data.train[index]
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != -100).sum())
        total = total + base(input_ids=torch.tensor([row.input_ids]), labels=labels).loss * count
        tokens += count
    (total / tokens).backward()
    close(ours, {n: p.grad for n, p in run.adapted.trainable.items() if p.grad is not None}, 1e-5)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_c10_an_epoch_trains_every_token_and_its_last_window_is_whole(tmp_path: Path, accumulation: int) -> None:
    """C10: 13 rows in batches of 2; the last window is shorter and its mean is over its own tokens."""
    write_rows(tmp_path / "odd.jsonl", rows(13))
    events: list[Any] = []
    config = tiny_config(
        tmp_path, data__train=str(tmp_path / "odd.jsonl"), training__max_steps=None, training__num_train_epochs=1,
        training__per_device_train_batch_size=2, training__gradient_accumulation_steps=accumulation,
        training__learning_rate=1e-9,
    )  # fmt: skip
    run, state = tiny_fit(config, events.append)
    fit(run, state)
    assert state.step == math.ceil(7 / accumulation) == run.plan.steps
    assert state.tokens == sum(example.trained for example in run.plan.data.train)
    assert (state.epoch, state.window) == (1, 0)
    last = [event for event in events if isinstance(event, StepLogged)][-1]
    window = run.plan.batches.epoch(0)[(run.plan.steps - 1) * accumulation :]
    examples = [run.plan.data.train[index] for batch in window for index in batch]
    with torch.no_grad():
        batch = collate_texts(examples, run.plan.layout)
        expected = run.loss(batch).item() / batch.labels.numel()
    assert last.loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_c13_gradient_checkpointing_changes_no_gradient(tmp_path: Path, method: str) -> None:
    """C13: equal to 1e-6, and every B gets one at the first step."""
    gradients = [
        recorded(tiny_config(tmp_path, method=method, training__max_steps=1, training__gradient_checkpointing=on))[0]
        for on in (False, True)
    ]
    close(gradients[1], gradients[0], 1e-6)
    assert all(g.abs().max() > 0 for name, g in gradients[1].items() if "lora_B" in name)


def test_last_layers_build_no_graph_below_them_with_checkpointing_too(tmp_path: Path) -> None:
    for checkpointing in (False, True):
        config = tiny_config(tmp_path, lora__layers="last:1", training__gradient_checkpointing=checkpointing)
        run, _ = tiny_fit(config)
        seen: list[bool] = []
        layers = run.adapted.loaded.model.get_submodule("model.layers")
        for layer in layers.children():
            layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(_first(out).requires_grad))
        run.adapted.model.train()
        run.loss(collate_texts(run.plan.data.train[:2], run.plan.layout))
        assert seen[:3] == [False, False, True]


def _first(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.slow
def test_c12_an_evaluation_in_the_middle_changes_no_gradient_of_a_qlora_run(tmp_path: Path) -> None:
    """C12 through the loop: bit-equal with and without an evaluation after each step."""
    options: dict[str, Any] = {"method": "qlora", "training__max_steps": 3, "model__dtype": "bfloat16"}
    without = recorded(tiny_config(tmp_path, **options))
    evaluated = recorded(
        tiny_config(tmp_path, **options, training__eval_steps=1, data__eval=str(tmp_path / "train.jsonl"))
    )
    for one, other in zip(without, evaluated, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_c17_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(tmp_path: Path) -> None:
    run, state = tiny_fit(tiny_config(tmp_path))
    next(iter(run.adapted.trainable.values())).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 1, on the rows .*train\.jsonl:\d+"):
        fit(run, state)
    assert state.step == 0
    assert not run.folder.metrics.exists()
    assert not run.folder.checkpoints.exists()


def test_c38_the_evaluation_loss_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """C38: total negative log-likelihood over total tokens, for batches of 1, 3 and 8."""
    run, _ = tiny_fit(tiny_config(tmp_path))
    run.adapted.model.eval()
    found = [evaluate_loss(run, run.plan.data.train, size) for size in (1, 3, 8)]
    run.plan = replace(run.plan, layout=BatchLayout(packed=False, pad_id=0))
    padded = evaluate_loss(run, run.plan.data.train, 3)
    for result in (*found, padded):
        assert result is not None
        assert found[0] is not None
        assert result[1] == sum(example.trained for example in run.plan.data.train)
        assert result[0] == pytest.approx(found[0][0], rel=1e-6)


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    events: list[Any] = []
    config = tiny_config(
        tmp_path, training__eval_steps=1, training__early_stopping_patience=2, training__max_steps=40,
        training__learning_rate=0.05, training__logging_steps=100,
        data__eval=str(write_rows(tmp_path / "eval.jsonl", contrary())),
    )  # fmt: skip
    run, state = tiny_fit(config, events.append)
    fit(run, state)
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert state.finished
    assert state.step == evaluations[-1].step < 40
    assert [event.best for event in evaluations[-2:]] == [False, False]
    (logged,) = (event for event in events if isinstance(event, StepLogged))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert (logged.step, len(losses)) == (state.step, state.step)
    assert min(losses) < logged.loss < max(losses), "of all steps, though 100 are a line of metrics"


def test_an_evaluation_that_was_owed_and_ends_the_run_logs_the_steps_that_are_left(tmp_path: Path) -> None:
    events: list[Any] = []
    held_out = str(write_rows(tmp_path / "eval.jsonl", contrary()))
    config = tiny_config(tmp_path, training__early_stopping_patience=1, data__eval=held_out)
    run, state = tiny_fit(config, events.append)
    state.step, state.window, state.logged_loss, state.logged_weight = 2, 2, 6.0, 3.0
    state.owes_evaluation, state.best_step, state.best_loss, state.best_score = True, 1, 0.0, 0.0
    fit(run, state)
    assert (state.finished, state.step) == (True, 2)
    assert [(event.step, event.loss) for event in events if isinstance(event, StepLogged)] == [(2, 2.0)]


def test_the_first_twenty_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """Same data, seed and order, float32: a loop of twelve lines over transformers' own loss, to 1e-4."""
    config = tiny_config(
        tmp_path, training__max_steps=20, training__warmup_steps=0, training__lr_scheduler_type="constant"
    )
    events: list[Any] = []
    run, state = tiny_fit(config, events.append)
    fit(run, state)
    other, _ = tiny_fit(config)
    model = other.adapted.loaded.model.train()
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(other.adapted.trainable.values(), lr=0.01, weight_decay=0.0)
    losses = []
    order = [batch for epoch in range(10) for batch in other.plan.batches.epoch(epoch)][:20]
    for batch in order:
        rows = [other.plan.data.train[i] for i in batch]
        width = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in rows])
        labels = torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in rows])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.adapted.trainable.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    ours = [event.loss for event in events if isinstance(event, StepLogged)]
    assert ours == pytest.approx(losses, abs=1e-4)
    for name, parameter in run.adapted.trainable.items():
        torch.testing.assert_close(parameter, other.adapted.trainable[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_c1_after_overfitting_generation_stops_by_itself(tmp_path: Path) -> None:
    """C1: the end of the turn is learned, though here it is the padding token too."""
    from loraft import api

    row = {"messages": [{"role": "user", "content": "the order"}, {"role": "assistant", "content": "is late"}]}
    write_rows(tmp_path / "one.jsonl", [row] * 4)
    config = tiny_config(
        tmp_path, data__train=str(tmp_path / "one.jsonl"), training__max_steps=30, training__warmup_steps=0,
        training__lr_scheduler_type="constant", training__learning_rate=0.03, lora__modules_to_save=["lm_head"],
    )  # fmt: skip
    api.train(config)
    answer = api.generate(
        str(tmp_path / "run"), prompt="the order", options=GenerationRequest(max_new_tokens=40)
    ).completion
    assert (answer.completion, answer.finish_reason) == ("is late", "stop")


@pytest.mark.slow
def test_every_frozen_4bit_module_is_kept_exact(tmp_path: Path) -> None:
    """What C12 rests on: nothing is left for the kernel without a backward."""
    from loraft.planning.run_plan import plan_run

    adapted = build_model(plan_run(tiny_config(tmp_path, method="qlora")))
    kept = [m for m in adapted.loaded.model.modules() if type(m).__name__ == "Linear4bit" and hasattr(m, "quant_state")]
    assert kept
    assert not any(module.support_avx512bf16_for_cpu for module in kept)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("zeros", [9, 10, 25])
def test_a_gradient_of_zero_for_ten_logged_steps_is_said_once(tmp_path: Path, zeros: int) -> None:
    """A frozen head, say, or rows that are known by heart: the loss does not depend on what is trained."""
    notes: list[str] = []

    def observer(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    run, state = tiny_fit(tiny_config(tmp_path, training__max_steps=zeros), observer)
    for name, parameter in run.adapted.trainable.items():
        if "lora_A" in name:
            parameter.data.zero_()  # B is zero too, so that no gradient comes through
    fit(run, state)
    assert len(notes) == (zeros >= 10)
    if notes:
        assert "the gradient norm has been 0.0000 for 10 logged steps in a row, up to step 10" in notes[0]


def test_the_norm_of_gradients_on_the_host_comes_to_where_the_losses_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of parts that are offloaded gradients and norm are on the host, and torch stacks tensors of one device alone."""
    brought: list[torch.device] = []

    class OnHost:
        def to(self, device: torch.device) -> torch.Tensor:
            brought.append(device)
            return torch.ones(())

    monkeypatch.setattr(train_step, "clip_grad_norm_", lambda *_: OnHost())
    run, state = tiny_fit(tiny_config(tmp_path, training__max_steps=2))
    fit(run, state)
    assert brought == [torch.device("cpu")] * 2
    assert state.grad_norm == 1.0
