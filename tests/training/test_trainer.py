"""A run's life: begun, stopped anywhere, resumed to the same bytes, refused where it must be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file
from torch import nn

from loraft import api
from loraft.api import runs
from loraft.errors import ConfigError, DataError, DiskFullError, Interrupted, RunError, RunFolderError
from loraft.events import Event, Note
from loraft.kernels.cpu.line_attention import LINES
from loraft.planning.run_plan import plan_run
from loraft.training import loop as evaluating
from loraft.training.built_model import build_model
from loraft.training.run_dir import RunFolder
from loraft.training.run_events import StepDone
from loraft.training.train_step import evaluate_loss
from tests.training.building import contrary, labelled, rows, tiny_config, write_rows

CLOCK = ("tokens_per_second", "peak_bytes")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without clock and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def stop_at(step: int) -> Any:
    """An observer that sends this process a SIGTERM after a step."""

    def observer(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return observer


def config_of(tmp_path: Path, output: str, **overrides: Any) -> Any:
    return tiny_config(
        tmp_path, training__output_dir=str(tmp_path / output), training__logging_steps=2, training__eval_steps=3,
        training__save_steps=4, data__eval=0.2, training__max_steps=7, lora__dropout=0.1,
        training__gradient_accumulation_steps=2, training__per_device_train_batch_size=2, **overrides,
    )  # fmt: skip


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "full"},
        {"method": "qlora", "training__optim": "adamw_8bit", "model__dtype": "bfloat16"},
        {"task": "seq2seq_lm"},
        {"task": "seq_cls"},
        {"task": "seq2seq_lm", "method": "full", "model_type": "marian"},  # its positions are not trained, nor saved
        {"training__optim": "adafactor", "training__neftune_noise_alpha": 5.0, "lora__plus_ratio": 8.0},
        {"training__optim": "lion_8bit", "training__lr_scheduler_type": "inverse_sqrt", "lora__r": 128},
        {"training__optim": "ademamix_8bit", "training__label_smoothing_factor": 0.1, "lora__r": 128},
        {"training__optim": "muon", "training__lr_scheduler_type": "polynomial", "lora__use_dora": True},
        {"training__optim": "muon", "method": "full", "training__neftune_noise_alpha": 5.0},
    ],
    ids=[
        *("lora", "full", "qlora-8bit", "seq2seq", "classifier", "marian-full"),
        *("adafactor", "lion", "ademamix", "muon", "muon-full"),
    ],
)
def test_stopped_at_a_step_and_resumed_it_is_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    goes_on_from(tmp_path, 3, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "seq_cls"}, (LINES, False, 4)),
        ({"task": "seq_cls", "training__kernels": "plain"}, ("sdpa", True, 0)),
        ({"task": "preference", "data__packing": "off"}, ("sdpa", False, 4)),
    ],
    ids=["auto", "plain", "reference"],
)
def test_attention_dropout_and_the_length_of_lines_are_a_cpus_own(
    tmp_path: Path, options: dict[str, Any], expected: tuple[str, bool, int]
) -> None:
    """Plain ones are as before there were others, for a run of an earlier version; a reference is attended by torch."""
    tiny_config(tmp_path, task=options["task"])
    plan = plan_run(config_of(tmp_path, "run", model__dtype="bfloat16", **options))
    model = build_model(plan).loaded.model
    dropping = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
    assert (model.config._attn_implementation, dropping == {nn.Dropout}, plan.layout.binary_digits) == expected


@pytest.mark.slow
def test_stopped_at_every_kind_of_step_and_resumed_it_is_the_same_bytes(tmp_path: Path) -> None:
    """In the middle of nothing, with a saved state, and behind one; with an evaluation, above."""
    goes_on_from(tmp_path, 1, 4, 6)


def goes_on_from(tmp_path: Path, *steps: int, **options: Any) -> None:
    """Adapter, optimizer and metrics of a resumed run are those of one that was never stopped."""
    tiny_config(tmp_path, **{key: options[key] for key in ("task", "model_type") if key in options})
    whole = api.train(config_of(tmp_path, "whole", **options))
    for step in steps:
        name = f"stopped-{step}"
        with pytest.raises(Interrupted) as stopped:
            api.train(config_of(tmp_path, name, **options), observer=stop_at(step))
        assert stopped.value.stopped_exit_code == 143
        assert f"stopped at step {step} of 7" in str(stopped.value)
        again = api.train(config_of(tmp_path, name, **options), resume=True)
        for file in sorted(path.relative_to(whole.saved) for path in whole.saved.glob("*.safetensors")):
            assert (again.saved / file).read_bytes() == (whole.saved / file).read_bytes(), (step, file)
        end = "checkpoints/step-000007/optimizer.safetensors"
        ours, theirs = load_file(again.run_folder / end), load_file(whole.run_folder / end)
        assert all((ours[key] == theirs[key]).all() for key in theirs)
        assert metrics(again.run_folder) == metrics(whole.run_folder)


@pytest.mark.slow
def test_a_stream_stopped_at_any_step_and_resumed_is_the_same_bytes(tmp_path: Path) -> None:
    """Two epochs of a stream, one row of which is bad and one too long: 5 steps are told, and 4 windows are there."""
    tiny_config(tmp_path)
    given = [*rows(16), {"messages": []}, {**rows(1)[0], "messages": [{"role": "assistant", "content": "late " * 90}]}]
    path = write_rows(tmp_path / "stream.jsonl", given)

    def config(output: str) -> Any:
        return tiny_config(
            tmp_path, training__output_dir=str(tmp_path / output), training__max_steps=None,
            training__num_train_epochs=2, training__save_steps=3, lora__dropout=0.1, data__train=str(path),
            data__streaming=True, data__shuffle_buffer=5, data__on_bad_row="skip", data__max_length=60,
        )  # fmt: skip

    notes: list[str] = []
    whole = api.train(config("whole"), observer=lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert whole.steps == 8
    told = "of 18 rows drawn since this start, 1 bad and 1 too long; the first bad one at"
    assert f"{told} {path}:17 messages: is an empty list" in notes
    assert api.check(config("other")).as_dict()["training"]["steps_an_epoch"] == 5
    for step in (1, 3, 4, 6):
        with pytest.raises(Interrupted):
            api.train(config(f"stopped-{step}"), observer=stop_at(step))
        again = api.train(config(f"stopped-{step}"), resume=True)
        name = "adapter_model.safetensors"
        assert (again.saved / name).read_bytes() == (whole.saved / name).read_bytes(), step
        assert metrics(again.run_folder) == metrics(whole.run_folder)


@pytest.mark.slow
def test_a_killed_run_forgets_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    whole = api.train(config_of(tmp_path, "whole"))
    killed = api.train(config_of(tmp_path, "killed"))
    # As after kill -9 at the end: the newest checkpoints are gone, and metrics has later lines.
    for name in ("step-000007", "step-000006"):
        shutil.rmtree(killed.run_folder / "checkpoints" / name, ignore_errors=True)
    (killed.run_folder / "checkpoints" / ".step-000006.partial").mkdir()
    again = api.train(config_of(tmp_path, "killed"), resume=True)
    assert metrics(again.run_folder) == metrics(whole.run_folder)
    assert (again.saved / "adapter_model.safetensors").read_bytes() == (
        whole.saved / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_kill_before_older_checkpoints_are_removed_leaves_none_too_many(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    done = api.train(config_of(tmp_path, "run", training__save_total_limit=1)).run_folder / "checkpoints"
    kept = sorted(path.name for path in done.iterdir())
    shutil.copytree(done / "step-000007", done / "step-000002")
    api.train(config_of(tmp_path, "run", training__save_total_limit=1), resume=True)
    assert sorted(path.name for path in done.iterdir()) == kept


@pytest.mark.slow
def test_c30_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    done = api.train(config_of(tmp_path, "run"))
    newest = done.run_folder / "checkpoints" / "step-000007" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    notes: list[str] = []
    api.train(
        config_of(tmp_path, "run"), resume=True,
        observer=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
    )  # fmt: skip
    assert any("step-000007 is damaged" in note for note in notes)
    assert any(note.startswith("going on from step-00000") for note in notes)


@pytest.mark.slow
def test_resume_without_a_checkpoint_begins_at_step_0_and_says_so(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    notes: list[str] = []
    result = api.train(
        config_of(tmp_path, "new"), resume=True,
        observer=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
    )  # fmt: skip
    assert result.steps == 7
    assert "there is no checkpoint to go on from: the run begins at step 0" in notes


def test_a_full_disk_is_told_wherever_it_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "append", full)
    tiny_config(tmp_path)
    with pytest.raises(DiskFullError, match="bytes are free") as told:
        api.train(config_of(tmp_path, "run"))
    assert "`resume" in str(told.value)


def stopped_in_evaluation(number: int) -> Any:
    """`evaluate_loss`, in whose call of that number a SIGTERM comes after the first batch."""
    calls = iter(range(1, 10))

    def evaluate(*args: Any, stop: Any) -> Any:
        asked = iter([False] if next(calls) == number else [False] * 100)

        def signalled() -> bool:
            if next(asked, True):
                os.kill(os.getpid(), signal.SIGTERM)
            return bool(stop())

        return evaluate_loss(*args, stop=signalled)

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize(("step", "number"), [(3, 1), (7, 3)])
def test_an_evaluation_that_is_stopped_is_made_up_for_even_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    """Stopped in it again on resuming, no step is taken before it is finished."""
    tiny_config(tmp_path)
    many = {"training__per_device_eval_batch_size": 1, "training__sample_prompts": ["the order"]}
    whole = api.train(config_of(tmp_path, "whole", **many))
    for resume, evaluation in ((False, number), (True, 1)):
        monkeypatch.setattr(evaluating, "evaluate_loss", stopped_in_evaluation(evaluation))
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 7"):
            api.train(config_of(tmp_path, "stopped", **many), resume=resume)
    monkeypatch.undo()
    again = api.train(config_of(tmp_path, "stopped", **many), resume=True)
    assert metrics(again.run_folder) == metrics(whole.run_folder)
    assert again.eval_loss == whole.eval_loss


def test_c33_what_changed_since_the_checkpoint_is_listed(tmp_path: Path) -> None:
    """Every other key: `tests/faults/test_resume_honestly.py`."""
    tiny_config(tmp_path)
    with pytest.raises(Interrupted):
        api.train(config_of(tmp_path, "run"), observer=stop_at(2))
    with pytest.raises(RunFolderError, match="seed was 0 and is 3"):
        api.train(config_of(tmp_path, "run", seed=3), resume=True)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lora__r": 8}, r"step-000002 has not what is trained now: the tensor .* is \[4, \d+\].*, and \d+ more"),
        ({"method": "full"}, "step-000002 has not what is trained now: it was trained by another method"),
    ],
)
def test_what_no_checkpoint_has_cannot_be_taken_on(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    tiny_config(tmp_path)
    with pytest.raises(Interrupted):
        api.train(config_of(tmp_path, "run"), observer=stop_at(2))
    with pytest.raises(RunFolderError, match=named) as refused:
        api.train(config_of(tmp_path, "run", **change), resume_anyway=True)
    assert len(refused.value.problems) == 1


@pytest.mark.slow
@pytest.mark.parametrize("optims", [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
def test_another_optimizer_begins_anew_and_what_was_taken_on_is_the_run(
    tmp_path: Path, optims: tuple[str, str]
) -> None:
    tiny_config(tmp_path)
    first, second = (config_of(tmp_path, "run", training__optim=optim) for optim in optims)
    for config, options in ((first, {}), (second, {"resume_anyway": True}), (second, {"resume": True})):
        notes: list[str] = []
        watch = stop_at(2 if config is first else 4)

        def observer(event: Event, watch: Any = watch, notes: list[str] = notes) -> None:
            watch(event)
            notes.extend([event.text] if isinstance(event, Note) else [])

        if "resume" in options:
            assert api.train(config, observer=observer, **options).steps == 7
        else:
            with pytest.raises(Interrupted):
                api.train(config, observer=observer, **options)
        begins = [note for note in notes if "begins anew" in note]
        assert bool(begins) == ("resume_anyway" in options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("config.yaml", None, "its config.yaml was lost"),
        ("config.yaml", "\0\0", "its config.yaml was edited or damaged"),
        ("manifest.json", None, "its manifest.json was lost or damaged"),
        ("manifest.json", "{", "its manifest.json was lost or damaged"),
    ],
)
def test_c33_what_cannot_be_compared_any_more_is_told(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    tiny_config(tmp_path)
    with pytest.raises(Interrupted):
        api.train(config_of(tmp_path, "run"), observer=stop_at(2))
    if text is None:
        (tmp_path / "run" / name).unlink()
    else:
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(RunFolderError, match=told):
        api.train(config_of(tmp_path, "run"), resume=True)
    assert api.train(config_of(tmp_path, "run"), resume_anyway=True).steps == 7


@pytest.mark.slow
def test_samples_end_where_answers_of_the_adapter_will(tmp_path: Path) -> None:
    """At what the base's generation_config.json names too, which is saved beside the adapter."""
    tiny_config(tmp_path)
    configs = {name: config_of(tmp_path, name, training__sample_prompts=["the order"]) for name in ("whole", "ended")}

    def sample(name: str) -> str:
        found = api.train(configs[name]).run_folder / "samples.jsonl"
        return str(json.loads(found.read_text().splitlines()[0])["answer"])

    whole = sample("whole")
    defaults = tmp_path / "model" / "generation_config.json"
    said = json.loads(defaults.read_text())
    defaults.write_text(json.dumps({**said, "stop_strings": [whole[3:6]]}))
    assert whole.startswith(ended := sample("ended"))
    assert len(ended) <= 3


@pytest.mark.slow
def test_a_signal_between_sample_prompts_leaves_the_evaluation_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_config(tmp_path)
    prompts = {"training__sample_prompts": ["the order", "is late"], "generation": {"max_new_tokens": 2}}
    whole = api.train(config_of(tmp_path, "whole", **prompts))

    def stopping(*_: object) -> Any:
        return lambda _: os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "answerer_of", stopping)
        with pytest.raises(Interrupted, match="stopped at step 3 of 7"):
            api.train(config_of(tmp_path, "stopped", **prompts))
    again = api.train(config_of(tmp_path, "stopped", **prompts), resume=True)
    assert metrics(again.run_folder) == metrics(whole.run_folder)
    name = "samples.jsonl"
    assert (again.run_folder / name).read_text() == (whole.run_folder / name).read_text()


@pytest.mark.slow
def test_c33_changed_rows_are_noticed_and_can_be_taken_on(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    with pytest.raises(Interrupted):
        api.train(config_of(tmp_path, "run"), observer=stop_at(2))
    write_rows(tmp_path / "train.jsonl", [*rows()[:-1], rows(20)[-1]])
    with pytest.raises(RunFolderError, match="the rows are not the same"):
        api.train(config_of(tmp_path, "run"), resume=True)
    assert api.train(config_of(tmp_path, "run"), resume_anyway=True).steps == 7


@pytest.mark.slow
def test_c33_classes_of_another_name_are_noticed(tmp_path: Path) -> None:
    """The rows have the same tokens and numbers; what the numbers mean is not the same."""
    config = config_of(tmp_path, "run", task="seq_cls")
    with pytest.raises(Interrupted):
        api.train(config, observer=stop_at(2))
    renamed = [row | {"label": row["label"].replace("order", "ordered")} for row in labelled()]
    write_rows(tmp_path / "train.jsonl", renamed)
    with pytest.raises(RunFolderError, match="the rows are not the same"):
        api.train(config, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_fewer_rows_than_were_trained_on_are_taken_on_with_the_next_epoch(tmp_path: Path, streaming: bool) -> None:
    """A place behind the end of an epoch gives no step: looking for one there would never end."""
    tiny_config(tmp_path)
    changes: dict[str, Any] = {"data__streaming": True, "data__eval": None} if streaming else {"data__eval": None}
    config = tiny_config(
        tmp_path, training__per_device_train_batch_size=1, training__save_steps=4, training__max_steps=9, **changes
    )
    with pytest.raises(Interrupted):
        api.train(config, observer=stop_at(6))
    write_rows(tmp_path / "train.jsonl", rows(3))
    assert api.train(config, resume_anyway=True).steps == 9


@pytest.mark.slow
def test_a_bad_row_late_in_a_stream_loses_no_step(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    path = write_rows(tmp_path / "stream.jsonl", [*rows(1100), {"messages": []}])
    streamed = {
        "data__train": str(path), "data__streaming": True, "data__shuffle_buffer": 1, "training__max_steps": 400,
        "training__save_steps": 1000,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"stream\.jsonl:1101"):
        api.train(tiny_config(tmp_path, **streamed))
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) > 200
    taken_on = tiny_config(tmp_path, **streamed | {"training__max_steps": 276}, data__on_bad_row="skip")
    assert api.train(taken_on, resume_anyway=True).steps == 276


def stopped_early(tmp_path: Path) -> Any:
    """A config whose run becomes worse at once."""
    return tiny_config(
        tmp_path, training__eval_steps=1, training__early_stopping_patience=2, training__max_steps=40,
        training__learning_rate=0.05, data__eval=str(write_rows(tmp_path / "eval.jsonl", contrary())),
    )  # fmt: skip


@pytest.mark.slow
def test_early_stopping_saves_the_best_weights(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    result = api.train(stopped_early(tmp_path))
    assert result.saved_step == result.best_step < result.steps
    best = result.run_folder / "checkpoints" / f"step-{result.best_step:06d}" / "adapter" / "adapter_model.safetensors"
    assert (result.saved / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    card = (result.saved / "README.md").read_text()
    assert f"{result.best_step} |" in next(line for line in card.splitlines() if line.startswith("| epochs, steps"))
    (loss,) = (
        line["loss"] for line in metrics(result.run_folder) if line["step"] == result.best_step and "loss" in line
    )
    assert f"last training loss: {loss:.4f}" in card, "not that of steps whose weights are not saved"


@pytest.mark.slow
def test_c30_best_weights_that_were_damaged_meanwhile_are_not_saved(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    notes: list[str] = []

    def flip(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])
        weights = tmp_path / "run/checkpoints/step-000002/adapter/adapter_model.safetensors"
        if isinstance(event, StepDone) and event.step == 3:
            weights.write_bytes(weights.read_bytes()[:-1] + b"?")

    result = api.train(stopped_early(tmp_path), observer=flip)
    assert (result.best_step, result.saved_step) == (2, 4)
    assert "the weights of step 4 are saved: the checkpoint of the best evaluation is damaged" in notes


@pytest.mark.slow
def test_sample_prompts_are_answered_and_change_nothing(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    plain = api.train(config_of(tmp_path, "plain"))
    asked = api.train(
        config_of(tmp_path, "asked", training__sample_prompts=["the order"], generation={"max_new_tokens": 4})
    )
    samples = [json.loads(line) for line in (asked.run_folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [3, 6, 7]
    assert (asked.saved / "adapter_model.safetensors").read_bytes() == (
        plain.saved / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_sample_prompts_of_a_classifier_are_passed_over(tmp_path: Path) -> None:
    tiny_config(tmp_path, task="seq_cls")
    config = config_of(tmp_path, "run", task="seq_cls", training__sample_prompts=["the order"])
    assert api.train(config).steps == 7
    assert not (tmp_path / "run/samples.jsonl").exists()


@pytest.mark.slow
def test_the_resolved_config_repeats_the_run(tmp_path: Path) -> None:
    from loraft.config.config_file import load_config

    tiny_config(tmp_path)
    first = api.train(config_of(tmp_path, "run"))
    again = load_config(first.run_folder / "config.yaml", [f"training.output_dir={tmp_path / 'again'}"])
    second = api.train(again)
    assert (first.saved / "adapter_model.safetensors").read_bytes() == (
        second.saved / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_tensorboard_tracker_gets_the_metrics(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    result = api.train(config_of(tmp_path, "run", training__report_to=["tensorboard"], training__project="mine"))
    assert list((result.run_folder / "trackers").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_a_run_that_is_to_be_replaced_is_there_still_where_a_tracker_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most want to be logged in to: the run was removed before that was known."""
    tiny_config(tmp_path)
    config = config_of(tmp_path, "run", training__report_to=["tensorboard"])
    folder = api.train(config).run_folder
    before = {path for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as without:
        without.setattr(TensorBoardTracker, "start", lambda _: 1 / 0)
        with pytest.raises(ConfigError, match="cannot be opened"):
            api.train(config, overwrite=True)
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    shared = tmp_path / "shared"
    (folder / "trackers").rename(shared)
    (folder / "trackers").symlink_to(shared)
    kept = set(shared.rglob("*"))
    api.train(config, overwrite=True)
    assert list((folder / "trackers").rglob("events.out.tfevents.*"))
    assert not (folder / "trackers").is_symlink(), "of one that is replaced nothing is left"
    assert set(shared.rglob("*")) == kept, "what a link leads to is another's"
    config = config_of(tmp_path, "run")
    api.train(config, overwrite=True)
    assert not list(folder.glob("trackers*"))


@pytest.mark.slow
def test_the_manifest_tells_versions_and_fingerprints_and_no_absolute_path(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    place = str(tmp_path)
    words = [
        "loraft", "train", f"{place}/config.yaml", f"model.name_or_path={place}/base model", f"--option={place}/x",
        f"data.train=[{place}/a.jsonl, {{path: '{place}/b.jsonl', weight: 0.5}}]", f"--adapter=mine={place}/c=0.5",
        "lora.start_from=~/runs/a", "data.eval=org/data", "model.name_or_path=../base", "training.learning_rate=1e-4",
    ]  # fmt: skip
    result = api.train(config_of(tmp_path, "run"), command=words)
    manifest = json.loads((result.run_folder / "manifest.json").read_text())
    assert manifest["base"]["fingerprint"].startswith("sha256:")
    assert [len(content) for content in manifest["data"]["train"]] == [64]
    assert manifest["command"] == [
        "loraft", "train", "config.yaml", "model.name_or_path=base model", "--option=x",
        "data.train=[a.jsonl, {path: 'b.jsonl', weight: 0.5}]", "--adapter=mine=c=0.5", "lora.start_from=a",
        "data.eval=org/data", "model.name_or_path=../base", "training.learning_rate=1e-4",
    ]  # fmt: skip
    assert str(tmp_path) not in (result.run_folder / "manifest.json").read_text()
    assert str(tmp_path) not in (result.saved / "README.md").read_text()


@pytest.mark.slow
def test_a_signal_wins_over_what_goes_wrong_after_it(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    stop = stop_at(5)

    def observer(event: Event) -> None:
        stop(event)
        if isinstance(event, StepDone) and event.step == 5:
            raise DataError("a row is gone")

    with pytest.raises(
        Interrupted, match=r"stopped at step 5 of 7; step-000004 is saved, for meanwhile a row is gone"
    ) as told:
        api.train(config_of(tmp_path, "run"), observer=observer)
    assert told.value.stopped_exit_code == 143
    assert api.train(config_of(tmp_path, "run"), resume=True).steps == 7


REMOVED = {
    "metrics": {"training__logging_steps": 1},
    "checkpoints": {"training__logging_steps": 100, "training__eval_steps": 100, "training__save_steps": 4},
    "samples": {
        "training__logging_steps": 100, "training__sample_prompts": ["the order"],
        "generation": {"max_new_tokens": 2}, "training__save_steps": 100,
    },
    "trackers": {"training__logging_steps": 2, "training__report_to": ["tensorboard"]},
    "result": {"training__logging_steps": 100, "training__eval_steps": 100, "training__save_steps": 100},
}  # fmt: skip


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("changes", REMOVED.values(), ids=REMOVED)
def test_a_folder_that_is_removed_while_the_run_goes_on_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_config(tmp_path)
    config = config_of(tmp_path, "run")
    values = config.model_dump(exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = values.get(section, {}) | ({name: value} if name else value)

    def remove(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(RunError, match="the run's folder was removed while the run went on") as told:
        api.train(type(config).model_validate(values), observer=remove)
    assert told.value.problems[0].where == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tiny_config(tmp_path)

    def block(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            (tmp_path / "run/metrics.jsonl").mkdir()

    with pytest.raises(RunError, match="cannot be written: Is a directory") as told:
        api.train(config_of(tmp_path, "run"), observer=block)
    assert told.value.problems[0].where == str(tmp_path / "run/metrics.jsonl")
