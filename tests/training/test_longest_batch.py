"""The longest batch is tried before the first step, leaves no trace, and says what helps where memory is out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraft import api
from loraft.config.schema import RunConfig
from loraft.errors import Interrupted, OutOfMemoryError
from loraft.events import Event, Note
from loraft.planning.run_plan import plan_run
from loraft.training.longest_batch import longest_step, read_in, try_longest_batch
from loraft.training.train_step import Trainer
from tests.training.building import tiny_config, tiny_fit
from tests.training.small_memory import room_for
from tests.training.test_trainer import stop_at

CLOCK = {"tokens_per_second", "peak_bytes"}
RUNS: dict[str, dict[str, Any]] = {  # tests/faults/test_steps.py has each method with each task
    "muon": {"training__optim": "muon", "model__dtype": "bfloat16", "data__packing": "off"},
    "lion": {"training__optim": "lion_8bit"},
    "checkpointing": {
        "training__gradient_checkpointing": True,
        "training__neftune_noise_alpha": 5,
        "lora__init": "eva",
    },
    "stream": {"data__streaming": True, "data__shuffle_buffer": 5, "data__eval": "train.jsonl"},
}


def config_of(folder: Path, name: str, kind: str = "", **more: Any) -> RunConfig:
    """A run of some kind with an evaluation and a checkpoint at each second step, in a folder of its own."""
    settings: dict[str, Any] = {
        "data__eval": 0.2, "lora__dropout": 0.1, "training__max_steps": 4, "training__save_steps": 2,
        "training__eval_steps": 2, "training__output_dir": str(folder / name), **RUNS.get(kind, {}), **more,
    }  # fmt: skip
    if settings["data__eval"] == "train.jsonl":
        settings["data__eval"] = str(folder / "train.jsonl")
    dtype = settings.pop("model__dtype", "float32")
    return tiny_config(folder, model={"name_or_path": str(folder / "model"), "dtype": dtype}, **settings)


def left_by(run: Path) -> dict[str, Any]:
    """The tensors of a run, of its last checkpoint and its result, and what it says of itself, clocks left out."""
    newest = max((run / "checkpoints").iterdir())
    tensors = {
        f"{file.relative_to(run)} {name}": tensor.flatten().view(torch.uint8)
        for file in (*newest.rglob("*.safetensors"), *run.glob("[am]*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    metrics = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    state = json.loads((newest / "state.json").read_text())
    del state["state"]["files"]
    return {"metrics": metrics, "state": state, **tensors}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_with_the_trial_is_the_run_without_it_to_the_bit(tmp_path: Path, kind: str) -> None:
    notes: list[str] = []

    def look(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    for name, tries in (("plain", False), ("tried", True)):
        api.train(config_of(tmp_path, name, kind, training__try_longest_batch=tries), observer=look)
    same(left_by(tmp_path / "plain"), left_by(tmp_path / "tried"))
    (note,) = [note for note in notes if note.startswith("the longest batch (")]
    assert ("later ones may be longer" in note) is (kind == "stream")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, "offload"])
def test_layers_that_are_fed_and_inputs_that_are_kept_on_the_host_are_tried_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool | str
) -> None:
    """On a CPU that takes itself for a device with memory of its own, which `auto` asks for."""
    for module in ("planning.planned_memory", "planning.run_plan", "training.built_model", "training.longest_batch"):
        monkeypatch.setattr(f"loraft.{module}.has_own_memory", lambda _: True)
    for name, tries in (("plain", False), ("tried", "auto")):
        config = config_of(
            tmp_path, name, training__try_longest_batch=tries, training__gradient_checkpointing=kept, lora__dropout=0.0
        )
        api.train(config.model_copy(update={"model": config.model.model_copy(update={"stream_layers": True})}))
    same(left_by(tmp_path / "plain"), left_by(tmp_path / "tried"))


@pytest.mark.slow
def test_a_run_that_is_resumed_tries_again_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    api.train(config_of(tmp_path, "plain", "lion"))
    tried = config_of(tmp_path, "tried", "lion", training__try_longest_batch=True)
    with pytest.raises(Interrupted):
        api.train(tried, observer=stop_at(2))
    api.train(tried, resume=True)
    same(left_by(tmp_path / "plain"), left_by(tmp_path / "tried"))


@pytest.mark.parametrize(
    "settings", [{}, {"data__packing": "off"}, {"training__max_steps": 2}, {"data__packing": "fill"}]
)
def test_it_is_the_batch_of_all_epochs_in_which_the_most_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = plan_run(
        tiny_config(tmp_path, **{"training__max_steps": 9, "training__gradient_accumulation_steps": 2, **settings})
    )
    left, sizes = plan.steps, list[int]()
    for epoch in range(plan.steps):
        for window in plan.batches.windows(plan.data.train, epoch, 0, (0, 0)):
            sizes += [read_in(rows, plan.layout) for rows in window.batches] if left > 0 else []
            left -= 1
    found = longest_step(plan, alone=True)
    assert max(read_in(rows, plan.layout) for rows in found.batches) == max(sizes)


def test_of_several_batches_the_two_longest_are_read_and_all_is_put_back(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, training__try_longest_batch=True, training__gradient_accumulation_steps=3,
        training__per_device_train_batch_size=2, data__eval=0.2, data__shared_prefix="off",
    )  # fmt: skip
    run, _ = tiny_fit(config)
    before = state_of(run)
    with room_for(10**6) as read:
        try_longest_batch(run)
    step = longest_step(run.plan, alone=True)
    longest = sorted(read_in(rows, run.plan.layout) for rows in step.batches)[-2:]
    held_out = read_in(run.plan.data.eval[:8], run.plan.layout)
    assert read == [*longest, held_out]
    for ours, theirs in zip(state_of(run), before, strict=True):
        assert torch.equal(ours, theirs)
    assert not run.optimizer.state
    assert all(parameter.grad is None for parameter in run.adapted.trainable.values())


def state_of(run: Trainer) -> list[torch.Tensor]:
    """Weights, the generator, and which modules train."""
    modes = torch.tensor([module.training for module in run.loss.modules()])
    return [*(each.detach().clone() for each in run.adapted.trainable.values()), torch.get_rng_state(), modes]


def test_where_memory_is_out_keys_are_named_with_what_they_free(tmp_path: Path) -> None:
    run, _ = tiny_fit(tiny_config(tmp_path, training__try_longest_batch=True))
    with room_for(20), pytest.raises(OutOfMemoryError) as told:
        try_longest_batch(run)
    (problem,) = told.value.problems
    assert "as the longest batch was tried before the first step (4 rows, " in problem.message
    assert problem.remedy is not None
    assert [line.partition(" frees ")[1] for line in problem.remedy.splitlines()] == [" frees "] * 3
    assert problem.key in problem.remedy.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("trained", [None, True], ids=["training", "evaluation"])
def test_where_memory_is_out_nothing_was_begun(tmp_path: Path, trained: bool | None) -> None:
    """What the run was to replace is there still."""
    config = tiny_config(tmp_path, data__eval=0.5, training__max_steps=1)
    api.train(config)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    tried = tiny_config(tmp_path, data__eval=0.5, training__max_steps=1, training__try_longest_batch=True)
    with room_for(40, trained=trained), pytest.raises(OutOfMemoryError) as told:
        api.train(tried, overwrite=True)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    (problem,) = told.value.problems
    assert "before the first step (" in problem.message
    assert "where 2.00 GiB more were asked for" in problem.message
    assert "GB of a step were predicted (runtime " in problem.message
    assert problem.remedy is not None
    assert problem.remedy.count(" frees ") == (3 if trained is None else 1)
    assert "resume" not in problem.remedy, "there is nothing to go on from"
    assert (problem.key == "training.per_device_eval_batch_size") is (trained is True)
