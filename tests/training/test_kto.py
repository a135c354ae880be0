"""Runs that learn from answers that stand alone: where they begin, what they are compared with, and where they end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.api import evaluate, train
from loraft.config.schema import RunConfig
from loraft.errors import InvalidInputError
from loraft.training.loop import fit
from loraft.training.resume import RunFolderError
from loraft.training.run_events import Evaluated, StepLogged
from loraft.training.train_step import evaluate_loss
from loraft.training.trainer import remember_reference
from tests.training.building import close, judged, preferred, recorded, tiny_config, tiny_fit, write_rows


def config_of(folder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> RunConfig:
    """A run of KTO over rows of both kinds."""
    folder.mkdir(exist_ok=True)
    path = write_rows(folder / "judged.jsonl", judged() if rows is None else rows)
    given = {"data__train": str(path), "preference__loss": "kto"} | options
    return tiny_config(folder, **{"task": "preference", **given})


@pytest.mark.slow
def test_kto_begins_at_one_half_and_parts_the_rewards_of_both_kinds(tmp_path: Path) -> None:
    events: list[Any] = []
    options = {"training__max_steps": 8, "training__eval_steps": 8, "training__learning_rate": 0.02}
    config = config_of(tmp_path, data__eval=str(tmp_path / "judged.jsonl"), **options)
    fit(*tiny_fit(config, events.append))
    steps = [each for each in events if isinstance(each, StepLogged)]
    last = [each for each in events if isinstance(each, Evaluated)][-1]
    assert steps[0].loss == pytest.approx(0.5, abs=1e-6)
    assert last.loss < 0.45
    assert last.figures["desirable_reward"] - last.figures["undesirable_reward"] == last.figures["margin"] > 0.5
    assert last.figures["kl"] >= 0
    assert last.rows == 16


@pytest.mark.slow
def test_rows_of_a_step_are_compared_with_one_number_however_they_are_laid_and_shared(tmp_path: Path) -> None:
    """C9 and C11 of answers that stand alone: 1 and 3 batches a step, padded or end to end; 1e-5 of the largest."""
    found = [
        recorded(
            config_of(
                tmp_path,
                training__per_device_train_batch_size=size,
                training__gradient_accumulation_steps=accumulation,
                training__max_steps=3,
                training__max_grad_norm=None,
                data__packing=packing,
            )
        )
        for size, accumulation, packing in ((6, 1, "auto"), (2, 3, "auto"), (6, 1, "off"))
    ]
    for one, *others in zip(*found, strict=True):
        for other in others:
            close(other, one, 1e-5)


@pytest.mark.slow
def test_an_evaluation_gives_the_same_in_any_batches_and_with_a_reference_that_is_remembered(tmp_path: Path) -> None:
    """C38 of answers that stand alone, with a model that has left its reference."""
    options = {"training__max_steps": 6, "training__eval_steps": 3, "preference__desirable_weight": 4}
    run, state = tiny_fit(config_of(tmp_path, data__eval=str(tmp_path / "judged.jsonl"), **options))
    fit(run, state)
    run.adapted.model.eval()
    online = [evaluate_loss(run, run.plan.data.eval, size) for size in (1, 5, 16)]
    with torch.no_grad():
        began = {name: weight.clone() for name, weight in run.adapted.trainable.items()}
        remember_reference(run)
        assert all(len(row.reference or ()) == 1 for row in (*run.plan.data.train, *run.plan.data.eval))
        assert all(torch.equal(weight, began[name]) for name, weight in run.adapted.trainable.items())
    later = evaluate_loss(run, run.plan.data.eval, 5)
    assert online[0] is not None
    assert online[0].figures["kl"] > 0
    for each in (*online[1:], later):
        assert each is not None
        assert each.loss == pytest.approx(online[0].loss, abs=1e-5)
        assert each.figures == pytest.approx(online[0].figures, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["known rows", "a stream"])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, streaming: bool) -> None:
    held_out = str(write_rows(tmp_path / "held.jsonl", judged(4)))
    options = {
        "training__save_steps": 2,
        "data__eval": held_out,
        "data__streaming": streaming,
        "training__max_steps": 4,
        "lora__dropout": 0.1,
    }
    whole = train(config_of(tmp_path, **options))
    config = config_of(tmp_path, **options, training__output_dir=str(tmp_path / "parts"))
    parts = train(config)
    for place in parts.run_folder.glob("checkpoints/step-*"):
        if place.name != "step-000002":
            shutil.rmtree(place)
    again = train(config, resume=True)
    name = "adapter_model.safetensors"
    assert (again.saved / name).read_bytes() == (whole.saved / name).read_bytes()
    assert again.figures == whole.figures


@pytest.mark.slow
def test_a_label_that_was_turned_since_is_another_run(tmp_path: Path) -> None:
    """C33: the tokens are the same, and what is learned of them is not."""
    config = config_of(tmp_path, training__save_steps=2)
    train(config)
    first, *others = judged()
    write_rows(tmp_path / "judged.jsonl", [{**first, "label": not first["label"]}, *others])
    with pytest.raises(RunFolderError, match="rows are not the same"):
        train(config, resume=True)


def notes(config: RunConfig) -> str:
    return "\n".join(tiny_fit(config)[0].plan.data.report.notes)


@pytest.mark.slow
def test_labels_are_counted_and_uneven_ones_are_told_with_the_weight_that_evens_them(tmp_path: Path) -> None:
    rows = [{**row, "label": number < 3} for number, row in enumerate(judged())]
    assert "3 of 16 answers are desirable and 13 undesirable" in notes(config_of(tmp_path, rows))
    assert "desirable_weight from 4.33 to 5.78" in notes(config_of(tmp_path, rows))
    assert "advised" not in notes(config_of(tmp_path, rows, preference__desirable_weight=5))
    alike = [{**row, "label": True} for row in judged()]
    assert "every answer is desirable" in notes(config_of(tmp_path, alike))


def test_answers_cut_to_nothing_and_those_with_both_labels_are_counted(tmp_path: Path) -> None:
    first = judged()[0]
    long = {"prompt": "the order is late " * 9, "completion": "yes", "label": True}
    options = {"data__max_length": 24, "data__on_overlength": "truncate"}
    rows = [*judged(), {**first, "label": not first["label"]}, long]
    report = tiny_fit(config_of(tmp_path, rows, **options))[0].plan.data.report
    assert report.sources[0].untrained == 1
    assert [each.row for each in report.contradicting] == [f"{tmp_path / 'judged.jsonl'}:17"]
    assert report.repeated == []


def test_of_each_kind_the_same_share_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {n} ?", "completion": f" {n}", "label": n % 4 == 0} for n in range(40)]
    held_out = tiny_fit(config_of(tmp_path, rows, data__eval=0.2))[0].plan.data.eval
    assert sorted(row.desirable is True for row in held_out) == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "full"}, "method: full does not keep"),
        ({"preference__label_smoothing": 0.1}, "dpo, simpo"),
        ({"training__metric_for_best_model": "accuracy"}, "single answers"),
        ({"training__per_device_train_batch_size": 1}, "needs 2"),
        (
            {
                "task": "seq2seq_preference",
                "training__per_device_train_batch_size": 1,
                "data__packing": "fill",
            },
            "needs 2",
        ),
        ({"preference__desirable_weight": 0}, "desirable_weight"),
    ],
)
def test_what_kto_does_not_take_is_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config_of(tmp_path, **options)


@pytest.mark.parametrize(
    ("rows", "loss", "key"),
    [
        (judged(4), "dpo", "preference.loss"),
        (preferred(4), "kto", "preference.loss"),
    ],
    ids=["answers for dpo", "pairs for kto"],
)
def test_rows_that_the_loss_does_not_learn_from_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], loss: str, key: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        tiny_fit(config_of(tmp_path, rows, preference__loss=loss))
    assert caught.value.problems[0].key == key


def test_a_file_of_pairs_beside_one_of_answers_is_refused_row_by_row(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", preferred(2))
    alone = write_rows(tmp_path / "judged.jsonl", judged(2))
    for train_on, eval_on in (([str(alone), str(pairs)], None), (str(alone), str(pairs))):
        with pytest.raises(InvalidInputError) as caught:
            tiny_fit(config_of(tmp_path, judged(2), data__train=train_on, data__eval=eval_on))
        assert [each.where for each in caught.value.problems] == [f"{pairs}:1", f"{pairs}:2"]


@pytest.mark.slow
def test_what_evaluates_pairs_takes_no_single_answers_nor_pairs_by_their_loss(tmp_path: Path) -> None:
    run = train(config_of(tmp_path, data__eval=0.25, training__max_steps=1)).run_folder
    for data in (None, str(write_rows(tmp_path / "pairs.jsonl", preferred(2)))):
        with pytest.raises(InvalidInputError, match=r"single answers|trained by kto"):
            evaluate(str(run), data=data)
