"""Runs that learn which of two answers is better: where they begin, what they compare with, and where they end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.api import train
from loraft.errors import InvalidInputError
from loraft.tasks.preference_loss import PreferenceLoss
from loraft.training.loop import fit
from loraft.training.run_events import Evaluated, StepLogged
from loraft.training.trainer import remember_reference
from tests.tiny import mostly_slow
from tests.training.building import close, preferred, recorded, tiny_config, tiny_fit, write_rows


def logged(folder: Path, **options: Any) -> tuple[list[StepLogged], list[Evaluated]]:
    """What a run tells."""
    events: list[Any] = []
    run, state = tiny_fit(tiny_config(folder, task="preference", **options), events.append)
    fit(run, state)
    return [[each for each in events if isinstance(each, kind)] for kind in (StepLogged, Evaluated)]  # type: ignore[return-value]


def test_dpo_begins_at_ln_2_with_a_margin_of_0_and_learns(tmp_path: Path) -> None:
    steps, evaluations = logged(tmp_path, training__max_steps=12, data__eval=str(tmp_path / "train.jsonl"))
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations[-1].figures["accuracy"] == 1
    assert evaluations[-1].figures["margin"] > 0.5
    assert evaluations[-1].loss < 0.5
    assert evaluations[-1].rows == 12


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo", "cpo"])
def test_every_other_loss_learns_the_order_too(tmp_path: Path, loss: str) -> None:
    options = {"data__eval": str(tmp_path / "train.jsonl"), "training__learning_rate": 0.02}
    _, evaluations = logged(tmp_path, preference__loss=loss, training__max_steps=20, **options)
    assert evaluations[-1].figures["accuracy"] >= 0.9
    assert evaluations[-1].loss < evaluations[0].loss


@pytest.mark.slow
def test_rows_of_a_step_count_alike_however_they_are_laid_and_shared_among_batches(tmp_path: Path) -> None:
    """C9 and C11 of pairs; 1e-5 of the largest gradient."""
    whole, parts, padded = (
        recorded(
            tiny_config(
                tmp_path, task="preference", training__per_device_train_batch_size=size, training__max_steps=2,
                training__gradient_accumulation_steps=accumulation, data__packing=packing,
                training__max_grad_norm=None,
            )
        )
        for size, accumulation, packing in ((4, 1, "auto"), (1, 4, "auto"), (4, 1, "off"))
    )  # fmt: skip
    for one, other, third in zip(whole, parts, padded, strict=True):
        close(other, one, 1e-5)
        close(third, one, 1e-5)


@pytest.mark.slow
def test_what_was_trained_before_is_the_reference_of_what_goes_on_from_it(tmp_path: Path) -> None:
    first = train(tiny_config(tmp_path, task="preference", training__learning_rate=0.02))
    steps, _ = logged(tmp_path, lora__start_from=str(first.run_folder), training__output_dir=str(tmp_path / "two"))
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1].loss < 0.6
    run, _ = tiny_fit(tiny_config(tmp_path, task="preference", lora__start_from=str(first.run_folder)))
    before = {name: weight.detach().clone() for name, weight in run.adapted.trainable.items()}
    for weight in run.adapted.trainable.values():
        weight.data += 0.1
    batch = run.batch(run.plan.data.train[:3])
    assert run.loss(batch).item() / 3 != pytest.approx(math.log(2), abs=1e-3)
    assert all((weight - before[name]).abs().min() > 0.05 for name, weight in run.adapted.trainable.items())


@pytest.mark.parametrize("init", mostly_slow(["pissa", "olora"], "olora"))
def test_an_adapter_that_begins_with_parts_of_the_weights_begins_at_ln_2_too(tmp_path: Path, init: str) -> None:
    run, _ = tiny_fit(tiny_config(tmp_path, task="preference", lora__init=init))
    with torch.no_grad():
        assert run.loss(run.batch(run.plan.data.train[:4])).item() / 4 == pytest.approx(math.log(2), abs=1e-6)


def test_an_encoder_decoder_learns_no_preferences_and_is_told_what_it_learns(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, task="preference", model_type="t5")
    with pytest.raises(
        InvalidInputError, match="'t5' is an encoder-decoder, and task: causal_lm or preference needs"
    ) as error:
        tiny_fit(config)
    assert error.value.problems[0].key == "model.name_or_path"


@pytest.mark.slow
def test_in_4_bits_it_begins_at_ln_2_too_and_learns(tmp_path: Path) -> None:
    """The reference is the base as it is stored while training: the same 4 bits."""
    options = {"method": "qlora", "training__gradient_checkpointing": True, "training__max_steps": 8}
    steps, evaluations = logged(tmp_path, data__eval=str(tmp_path / "train.jsonl"), **options)
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert evaluations[-1].figures["margin"] > 0.3


@pytest.mark.slow
def test_pairs_of_a_stream_are_the_same_pairs_and_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """What is read in the files' order is learned as without streaming; 1e-6: references are read in other batches."""
    options: dict[str, Any] = {"task": "preference", "data__shuffle": False, "training__max_steps": 5}
    listed = train(tiny_config(tmp_path, **options, training__output_dir=str(tmp_path / "listed")))
    options |= {"data__streaming": True, "training__save_steps": 2}
    whole = train(tiny_config(tmp_path, **options))
    config = tiny_config(tmp_path, **options, training__output_dir=str(tmp_path / "parts"))
    for place in (*(train(config).run_folder / "checkpoints").glob("step-00000[345]"),):
        shutil.rmtree(place)
    parts = train(config, resume=True)
    losses = [
        [json.loads(line)["loss"] for line in (each.run_folder / "metrics.jsonl").read_text().splitlines()]
        for each in (listed, whole, parts)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == losses[1]
    name = "adapter_model.safetensors"
    assert (parts.saved / name).read_bytes() == (whole.saved / name).read_bytes()


def test_every_weight_has_no_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method: full does not keep"):
        tiny_config(tmp_path, task="preference", method="full")
    tiny_config(tmp_path, task="preference", method="full", preference__loss="orpo")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preference__loss": "ipo", "preference__label_smoothing": 0.1}, "dpo, simpo"),
        ({"training__label_smoothing_factor": 0.1}, "preference.label_smoothing"),
        ({"training__metric_for_best_model": "macro_f1"}, "classifiers"),
        ({"data__on_overlength": "split"}, "cannot be split"),
    ],
)
def test_what_a_loss_does_not_take_is_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_config(tmp_path, task="preference", **options)


def test_pairs_that_are_too_long_or_cut_to_nothing_are_counted(tmp_path: Path) -> None:
    long = {"prompt": "the order is late " * 9, "chosen": "yes", "rejected": "no"}
    rows = write_rows(tmp_path / "long.jsonl", [*preferred(3), long])
    options = {"task": "preference", "data__train": str(rows), "data__max_length": 24}
    (dropped,) = tiny_fit(tiny_config(tmp_path, **options))[0].plan.data.report.sources
    assert (dropped.read, dropped.overlength, dropped.kept) == (4, 1, 3)
    (cut,) = tiny_fit(tiny_config(tmp_path, **options, data__on_overlength="truncate"))[0].plan.data.report.sources
    assert (cut.overlength, cut.untrained, cut.kept) == (1, 1, 3)


def test_pairs_that_are_the_same_are_counted(tmp_path: Path) -> None:
    alike = {"prompt": "the order", "chosen": " is late", "rejected": " is late"}
    rows = write_rows(tmp_path / "alike.jsonl", [alike, {**alike, "rejected": " is here"}, alike])
    (counts,) = tiny_fit(tiny_config(tmp_path, task="preference", data__train=str(rows)))[0].plan.data.report.sources
    (finding,) = counts.findings
    assert (finding.rows, finding.first) == (2, f"{rows}:1")


@pytest.mark.slow
def test_what_the_reference_gives_is_computed_once_where_rows_are_read_again(tmp_path: Path) -> None:
    options = {
        "task": "preference",
        "training__per_device_eval_batch_size": 5,
        "training__gradient_checkpointing": True,
    }
    run, _ = tiny_fit(tiny_config(tmp_path, **options))
    online = run.loss(run.batch(run.plan.data.train))
    remember_reference(run)
    assert all(row.reference is not None for row in run.plan.data.train)
    for weight in run.adapted.trainable.values():
        weight.data += 0.05
    assert isinstance(run.loss, PreferenceLoss)
    run.loss.before = None  # nothing is computed anew
    later = run.loss(run.batch(run.plan.data.train))
    assert online.item() == pytest.approx(12 * math.log(2), abs=1e-5)
    assert later.item() != pytest.approx(online.item(), abs=1e-2)
    once, _ = tiny_fit(tiny_config(tmp_path, **options, training__max_steps=3))
    remember_reference(once)
    assert all(row.reference is None for row in once.plan.data.train)


def test_rows_stay_what_they_are_where_the_same_source_has_other_targets_elsewhere(tmp_path: Path) -> None:
    ranked = [{"prompt": f"q {number}", "a": "one", "b": "two words", "c": "and three words"} for number in range(4)]
    path = str(write_rows(tmp_path / "ranked.jsonl", ranked))
    sources = [{"path": path, "columns": {"chosen": good, "rejected": bad}} for good, bad in ("ab", "bc")]
    run, _ = tiny_fit(tiny_config(tmp_path, task="seq2seq_preference", data__train=sources))
    before = [(row.where, row.labels) for row in run.plan.data.train]
    remember_reference(run)
    assert [(row.where, row.labels) for row in run.plan.data.train] == before
    assert all(row.reference is not None for row in run.plan.data.train)


def test_answers_that_are_longer_on_one_side_are_told(tmp_path: Path) -> None:
    rows = [{**row, "rejected": [{"role": "assistant", "content": "no"}]} for row in preferred(4)]
    path = write_rows(tmp_path / "sided.jsonl", rows)
    notes = tiny_fit(tiny_config(tmp_path, task="preference", data__train=str(path)))[0].plan.data.report.notes
    assert any("longer in" in note for note in notes)
    assert any("length is learned" in note for note in notes)
    even = [{**row, "rejected": row["chosen"]} for row in preferred(4)]
    path = write_rows(tmp_path / "even.jsonl", even)
    notes = tiny_fit(tiny_config(tmp_path, task="preference", data__train=str(path)))[0].plan.data.report.notes
    assert not any("longer in" in note for note in notes)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"task": "preference", "training__save_steps": 2, "data__eval": 0.25, "training__save_total_limit": None}
    whole = train(tiny_config(tmp_path, **options))
    config = tiny_config(tmp_path, **options, training__output_dir=str(tmp_path / "parts"))
    parts = train(config)
    for place in ("step-000006", "step-000004", "step-000003"):
        shutil.rmtree(parts.run_folder / "checkpoints" / place, ignore_errors=True)
    again = train(config, resume=True)
    name = "adapter_model.safetensors"
    assert (again.saved / name).read_bytes() == (whole.saved / name).read_bytes()
    lines = [json.loads(line) for line in (again.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval_accuracy"] == whole.figures["accuracy"]
