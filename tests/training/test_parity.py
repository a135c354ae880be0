"""The numbers of the loop in every task: C9 on one rank, C10, C13, C16 and C17."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.adapters import inject
from loraft.errors import NonFiniteError
from loraft.training.checkpoint import newest_checkpoint
from loraft.training.loop import fit
from loraft.training.run_events import StepDone, StepLogged
from loraft.training.train_step import Trainer
from tests.training.building import ROWS_OF, close, recorded, tiny_config, tiny_fit, without_dropout, write_rows
from tests.training.wide import wide_config

SETUPS = {"2x2": (2, 2), "1x4": (1, 4)}
TASKS = ("causal_lm", "seq2seq_lm", "seq_cls")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
@pytest.mark.parametrize("task", TASKS)
def test_c9_accumulation_gives_the_gradient_of_the_whole(tmp_path: Path, task: str, method: str) -> None:
    """C9: four rows of uneven lengths as 4×1, 2×2 and 1×4, equal to 1e-5 of each parameter's largest gradient.

    A model that is trained whole is compared in float64, to 1e-10: in float32 the order in which a CPU sums is 1.3e-5
    of a T5's gradient on some. What rows share is computed in each there: the loss is float32 even so, and would be
    rounded otherwise behind another line (1e-7).
    """

    def gradients(size: int, accumulation: int) -> list[dict[str, torch.Tensor]]:
        options: dict[str, Any] = {
            "training__per_device_train_batch_size": size,
            "training__gradient_accumulation_steps": accumulation,
            "training__max_grad_norm": None,
        }
        if method == "full" and task == "causal_lm":
            options["data__shared_prefix"] = "off"
        # Of a T5 by QLoRA from seed 0 the gradient of one key is small enough for rounding to show in float32.
        config = tiny_config(tmp_path, task=task, method=method, seed=1, training__max_steps=3, **options)
        return recorded(config, prepare=in_float64 if method == "full" else lambda _: None)

    def in_float64(run: Trainer) -> None:
        run.adapted.loaded.model.double()

    whole = gradients(4, 1)
    assert len(whole) == 3
    assert all(gradient.abs().max() > 0 for name, gradient in whole[0].items() if "lora_A" in name)
    for size, accumulation in SETUPS.values():
        for theirs, ours in zip(whole, gradients(size, accumulation), strict=True):
            close(ours, theirs, 1e-10 if method == "full" else 1e-5)


@pytest.mark.slow
def test_c9_an_uneven_last_window_of_weighted_classes_is_whole(tmp_path: Path) -> None:
    """C9: a class counts what it weighs in the whole window, however its rows are spread over batches."""
    options: dict[str, Any] = {
        "task": "seq_cls",
        "training__class_weights": "balanced",
        "training__max_grad_norm": None,
    }
    whole, parts = (
        recorded(
            tiny_config(
                tmp_path,
                **options,
                training__per_device_train_batch_size=size,
                training__gradient_accumulation_steps=accumulation,
                training__max_steps=3,
            )
        )
        for size, accumulation in ((5, 1), (1, 5))
    )
    for theirs, ours in zip(whole, parts, strict=True):
        close(ours, theirs, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq_lm", "seq_cls"])
def test_c10_two_epochs_are_those_of_a_plain_loop(tmp_path: Path, task: str) -> None:
    """C9, C10, C15 and C16: transformers' own loss of rows one by one, the same order, AdamW and rates; to 1e-4.

    13 rows in batches of 2, 3 batches a step: the last window of an epoch has one batch of one row.
    """
    config = tiny_config(
        tmp_path, task=task, data__train=str(write_rows(tmp_path / "odd.jsonl", ROWS_OF[task](13))),
        training__max_steps=None, training__num_train_epochs=2, training__per_device_train_batch_size=2,
        training__gradient_accumulation_steps=3, training__lr_scheduler_type="linear", training__warmup_steps=2,
    )  # fmt: skip
    events: list[Any] = []
    (ours, state), (theirs, _) = tiny_fit(config, events.append), tiny_fit(config)
    for run in (ours, theirs):
        without_dropout(run.adapted.loaded.model)
    fit(ours, state)
    logged = [event for event in events if isinstance(event, StepLogged)]
    assert (state.step, ours.plan.steps) == (6, 6)
    assert state.tokens == 2 * sum(example.trained for example in ours.plan.data.train)
    expected = plain_losses(theirs)
    assert [event.loss for event in logged] == pytest.approx(expected, rel=1e-4)
    assert [event.learning_rate for event in logged] == pytest.approx([0.01 * f for f in RATES])


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_c52_in_bfloat16_small_steps_are_learned_as_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dora: bool
) -> None:
    """C52: the losses of 12 steps at a low rate: peft's layers lie more than twice as far from those of float32."""

    def losses(dtype: str) -> list[float]:
        told: list[Any] = []
        options: dict[str, Any] = {"model__dtype": dtype, "training__max_steps": 12, "training__learning_rate": 1e-4}
        options["lora__use_dora"] = dora
        config = wide_config(tmp_path, **options, training__output_dir=str(tmp_path / f"run-{len(runs)}"))
        fit(*tiny_fit(config, told.append))
        return [event.loss for event in told if isinstance(event, StepDone)]

    runs: list[list[float]] = []
    runs += [losses("float32")]
    runs += [losses("bfloat16")]
    monkeypatch.setattr(inject, "patch_lora_linears", lambda *_: None)
    runs += [losses("bfloat16")]
    exact, ours, pefts = runs
    off = [sum(abs(a - b) for a, b in zip(each, exact, strict=True)) for each in (ours, pefts)]
    assert off[0] < 0.5 * off[1]


RATES = (1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4)
"""Two steps of warm-up, then linearly down, of six in all."""


def plain_losses(run: Trainer) -> list[float]:
    """The loss of each step of a plain loop."""
    parameters = list(run.adapted.trainable.values())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    losses: list[float] = []
    for epoch in range(2):
        batches = run.plan.batches.epoch(epoch)  # type: ignore[union-attr]
        for start in range(0, len(batches), 3):
            rows = [run.plan.data.train[index] for batch in batches[start : start + 3] for index in batch]
            total = torch.zeros(())
            for row in rows:
                labels = row.labels if row.target_tokens else row.labels[:1]
                told = run.adapted.loaded.model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([labels]))
                total = total + told.loss * len(labels)
            mean = total / sum(row.trained for row in rows)
            optimizer.zero_grad()
            mean.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.param_groups[0]["lr"] = 0.01 * RATES[len(losses)]
            optimizer.step()
            losses.append(mean.item())
    return losses


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("task", TASKS)
def test_c17_an_evaluation_that_is_not_finite_names_its_rows_and_the_checkpoint_before_stands(
    tmp_path: Path, task: str
) -> None:
    """C17: the weights become NaN in the third step; what was saved after the second stands."""
    config = tiny_config(
        tmp_path, task=task, training__save_steps=2, training__eval_steps=3, training__per_device_eval_batch_size=2,
        data__eval=str(tmp_path / "train.jsonl"),
    )  # fmt: skip

    def poison(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            next(iter(run.adapted.trainable.values())).data.fill_(float("nan"))

    run, state = tiny_fit(config, poison)
    with pytest.raises(NonFiniteError, match=r"evaluation loss is nan at step 3, on the rows .*jsonl:1, .*jsonl:2: "):
        fit(run, state)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["step-000002"]
    assert newest_checkpoint(run.folder.checkpoints)[1] == []


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_c13_gradient_checkpointing_changes_no_gradient_of_a_classifier(
    tmp_path: Path, method: str, model_type: str
) -> None:
    """C13: equal to 1e-6, and every B gets one at the first step."""
    off, on = (
        recorded(
            tiny_config(
                tmp_path, task="seq_cls", model_type=model_type, method=method, training__max_steps=1,
                training__gradient_checkpointing=checkpointing,
            )
        )[0]
        for checkpointing in (False, True)
    )  # fmt: skip
    close(on, off, 1e-6)
    assert all(gradient.abs().max() > 0 for name, gradient in on.items() if "lora_B" in name)
