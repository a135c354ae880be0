"""What may change when a run is gone on with, how it is said, and how long a run may become."""

from __future__ import annotations

import json
import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft import api
from loraft.config.change_config import with_values
from loraft.config.config_file import dump_config, load_config
from loraft.config.schema import RunConfig, TrainingSection
from loraft.errors import Interrupted, RunFolderError
from loraft.events import Event, Note
from loraft.optimization.schedule import learning_rate
from loraft.planning.run_plan import plan_run
from loraft.training.loop import fit
from loraft.training.resume import BEFORE, as_begun, compare_with_begun, rate_note, resume_from
from loraft.training.run_dir import RunFolder
from loraft.training.trainer import TrainResult
from tests.training.building import contrary, rows, tiny_config, tiny_fit, write_rows
from tests.training.test_trainer import config_of, metrics, stop_at

HARMLESS: dict[str, Any] = {
    "training__logging_steps": 1,
    "training__report_to": ["tensorboard"],
    "training__save_total_limit": 1,
    "training__sample_prompts": ["the order"],
    "training__eval_steps": 2,
    "training__save_steps": 1,
    "generation": {"max_new_tokens": 2},
}


def resume(config: RunConfig, **options: Any) -> tuple[TrainResult, list[str]]:
    """Go on with a run: the result, and what was noted."""
    notes: list[str] = []

    def observer(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    return api.train(config, resume=True, observer=observer, **options), notes


def begin(config: RunConfig, step: int = 3) -> None:
    with pytest.raises(Interrupted):
        api.train(config, observer=stop_at(step))


@pytest.mark.slow
def test_what_changes_no_step_is_taken_on_and_said_in_one_line(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    whole = api.train(config_of(tmp_path, "whole"))
    begin(config_of(tmp_path, "run"))
    changed = RunConfig.model_validate(_changed(config_of(tmp_path, "run"), HARMLESS))
    result, notes = resume(changed)
    (told,) = [note for note in notes if note.startswith("since the run was begun")]
    for key in HARMLESS:
        assert key.replace("__", ".") in told
    assert "training.logging_steps was 2 and is 1" in told
    name = "adapter_model.safetensors"
    assert (result.saved / name).read_bytes() == (whole.saved / name).read_bytes()
    assert load_config(tmp_path / "run/config.yaml").training.logging_steps == 1
    assert not [note for note in resume(changed)[1] if note.startswith("since the run was begun")]


@pytest.mark.parametrize("key", BEFORE)
def test_a_run_of_a_version_without_a_key_goes_on_as_it_was(tmp_path: Path, key: str) -> None:
    """What is written of it decides, and where nothing is, what such a version did."""
    config, folder = tiny_config(tmp_path), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    section, _, name = key.partition(".")
    written = with_values(config, {key: "auto"}).model_dump(mode="json")
    folder.config.write_text(json.dumps(written))
    assert attrgetter(key)(as_begun(config, folder)) == "auto"
    del written[section][name]
    folder.config.write_text(json.dumps(written))
    assert attrgetter(key)(as_begun(config, folder)) == BEFORE[key]


def test_a_key_that_the_task_does_not_use_tells_of_no_earlier_version(tmp_path: Path) -> None:
    """It is left out of what is written: a run that was killed before its first checkpoint begins as it did."""
    config, folder = tiny_config(tmp_path, task="seq_cls"), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(dump_config(config))
    assert "shared_prefix" not in folder.config.read_text()
    assert as_begun(config, folder) == config


def _changed(config: RunConfig, changes: dict[str, Any]) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return values


@pytest.mark.slow
def test_eval_steps_that_decide_where_a_run_ends_may_not_change(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    stopping = {"training__early_stopping_patience": 2}
    begin(config_of(tmp_path, "run", **stopping))
    changed = _changed(config_of(tmp_path, "run", **stopping), {"training__eval_steps": 2})
    with pytest.raises(RunFolderError, match=r"training\.eval_steps was 3 and is 2"):
        resume(RunConfig.model_validate(changed))


def longer(folder: Path, steps: int | None, **changes: Any) -> RunConfig:
    return tiny_config(folder, training__max_steps=steps, training__lr_scheduler_type="linear", **changes)


@pytest.mark.slow
def test_a_finished_run_says_how_to_train_on_and_does(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    api.train(longer(tmp_path, 4))
    result, notes = resume(longer(tmp_path, 4))
    assert result.steps == 4
    assert (
        "the run is finished: its result is saved again from step-000004; to train on, `resume` with a greater "
        "training.max_steps" in notes
    )
    result, notes = resume(longer(tmp_path, 8))
    assert result.steps == 8
    assert "since the run was begun, training.max_steps was 4 and is 8: taken on" in notes
    rate = learning_rate(TrainingSection(learning_rate=0.01, lr_scheduler_type="linear", warmup_steps=1), 5, 8)
    (told,) = [note for note in notes if note.startswith("the run goes on to step 8 instead of 4")]
    assert f"{rate:.3g} at step 5, where it had come to" in told
    assert [line["learning_rate"] for line in metrics(tmp_path / "run") if "loss" in line][4] == rate


def test_a_secret_of_a_config_is_no_change_and_is_told_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that was made in Python may hold one, which is not written into the run's folder."""
    monkeypatch.setenv("MY_SECRET", "no-shape-at-all")
    config = tiny_config(tmp_path, training__project="no-shape-at-all")
    plan, folder = plan_run(config), RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.describe(plan.config, {})
    assert "no-shape-at-all" not in folder.config.read_text()
    assert compare_with_begun(plan, folder, True, anyway=False) == ((), plan.steps)


@pytest.mark.slow
def test_a_scale_begins_anew_where_the_run_had_none(tmp_path: Path) -> None:
    """As where model.dtype has become float16, which `resume_anyway` takes on."""
    run, state = tiny_fit(tiny_config(tmp_path, training__max_steps=1))
    fit(run, state)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    assert resume_from(run, state, (), None)
    assert run.scaler.get_scale() == 256


@pytest.mark.slow
def test_more_epochs_are_a_longer_run_too(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    begin(longer(tmp_path, None, training__num_train_epochs=1), step=2)
    result, notes = resume(longer(tmp_path, None, training__num_train_epochs=2))
    assert result.steps == 6
    assert any(note.startswith("the run goes on to step 6 instead of 3") for note in notes)
    _, notes = resume(longer(tmp_path, None, training__num_train_epochs=2))
    assert any("a greater training.num_train_epochs" in note for note in notes)


@pytest.mark.slow
def test_a_longer_run_is_compared_all_the_same(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    api.train(longer(tmp_path, 4))
    with pytest.raises(RunFolderError, match=r"seed was 0 and is 1") as refused:
        resume(longer(tmp_path, 8, seed=1))
    assert len(refused.value.problems) == 1
    write_rows(tmp_path / "train.jsonl", rows(9))
    with pytest.raises(RunFolderError, match="the rows are not the same"):
        resume(longer(tmp_path, 8))


@pytest.mark.slow
def test_a_shorter_run_is_another(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    begin(longer(tmp_path, 6))
    with pytest.raises(RunFolderError, match=r"training\.max_steps was 6 and is 5"):
        resume(longer(tmp_path, 5))
    result, notes = resume(longer(tmp_path, 5), resume_anyway=True)
    assert result.steps == 5
    assert any("training.max_steps was 6 and is 5" in note for note in notes)


@pytest.mark.slow
def test_a_run_that_stopped_early_says_so_and_goes_on_with_more_patience(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    held_out = str(write_rows(tmp_path / "eval.jsonl", contrary()))

    def config(patience: int | None) -> RunConfig:
        return tiny_config(
            tmp_path, training__eval_steps=1, training__early_stopping_patience=patience, training__max_steps=9,
            training__learning_rate=0.05, data__eval=held_out,
        )  # fmt: skip

    notes: list[str] = []
    first = api.train(config(1), observer=lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    (told,) = [note for note in notes if note.startswith("stopped early")]
    assert told.startswith(f"stopped early at step {first.steps} of 9: the loss of the evaluation rows has not become ")
    assert f"than {first.best_eval_loss:.4f} at step {first.best_step} in 1 evaluation" in told
    again, notes = resume(config(1))
    assert again.steps == first.steps
    assert any("a greater training.early_stopping_patience, or with null" in note for note in notes)
    assert resume(config(None))[0].steps == 9


@pytest.mark.slow
def test_what_changes_the_steps_is_refused_in_the_words_of_the_config(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    api.train(longer(tmp_path, 2))
    schedule = {"training__lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    others = {"training__label_smoothing_factor": 0.1, "training__neftune_noise_alpha": 5.0, "lora__plus_ratio": 4.0}
    changed = _changed(longer(tmp_path, 4), {"training__lr_scheduler_type": "cosine_with_min_lr", **schedule, **others})
    with pytest.raises(RunFolderError) as refused:
        resume(RunConfig.model_validate(changed))
    told = [problem.message.removeprefix("since the run was begun, ") for problem in refused.value.problems]
    assert told == [
        "lora.plus_ratio was 1 and is 4",
        "training.label_smoothing_factor was 0 and is 0.1",
        "training.lr_scheduler_kwargs was null and is {min_lr_rate: 0.1}",
        "training.lr_scheduler_type was linear and is cosine_with_min_lr",
        "training.neftune_noise_alpha was null and is 5",
    ]
    assert resume(RunConfig.model_validate(changed), resume_anyway=True)[0].steps == 4


@pytest.mark.parametrize(
    ("schedule", "step", "told"),
    [
        ("constant", 50, "the run goes on to step 200 instead of 100, and the learning rate stays 0.001"),
        ("linear", 50, "0.00075 at step 51, where it would have been 0.0005"),
        ("linear", 100, "0.0005 at step 101, where it had come to 1e-05"),
    ],
)
def test_what_more_steps_do_to_the_rate_is_said(schedule: Any, step: int, told: str) -> None:
    section = TrainingSection(learning_rate=1e-3, lr_scheduler_type=schedule, warmup_steps=0)
    assert told in rate_note(section, step=step, before=100, now=200)


@pytest.mark.slow
def test_a_run_goes_on_with_the_optimizer_that_auto_was_when_it_began(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        api.train(tiny_config(tmp_path, training__optim="adafactor"), observer=stop_at(2))
    result, notes = resume(tiny_config(tmp_path, training__optim="auto"))
    assert (result.steps, "going on from step-000002" in notes) == (6, True)
    assert load_config(tmp_path / "run" / "config.yaml").training.optim == "adafactor"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt_neox", "mixtral"])
def test_a_model_whose_files_have_other_names_goes_on_from_its_own_checkpoint(tmp_path: Path, model_type: str) -> None:
    """The head of one is called otherwise in files, and the experts of the other lie there one by one."""
    options: dict[str, Any] = {"model_type": model_type, "method": "full", "training__max_steps": 3}
    whole = api.train(tiny_config(tmp_path, training__output_dir=str(tmp_path / "whole"), **options))
    with pytest.raises(Interrupted):
        api.train(tiny_config(tmp_path, **options), observer=stop_at(2))
    again = api.train(tiny_config(tmp_path, **options), resume=True)
    assert (again.saved / "model.safetensors").read_bytes() == (whole.saved / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_finished_run_whose_checkpoints_are_gone_is_not_begun_anew_over_its_result(tmp_path: Path) -> None:
    done = api.train(longer(tmp_path, 4))
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = {path.name: path.read_bytes() for path in done.saved.iterdir()}
    with pytest.raises(RunFolderError, match="there is no checkpoint to go on from"):
        resume(longer(tmp_path, 8))
    assert {path.name: path.read_bytes() for path in done.saved.iterdir()} == before
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4]
