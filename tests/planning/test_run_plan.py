"""What check tells and train refuses, from real folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft import api
from loraft.errors import InvalidInputError
from loraft.models import device as placement
from loraft.models.device import DeviceConfig, StatedDevice
from loraft.planning.planned_memory import too_large
from loraft.planning.run_plan import RunPlan, plan_run
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.building import rows, tiny_config, write_rows


def test_everything_auto_is_resolved(tmp_path: Path) -> None:
    config = plan_run(tiny_config(tmp_path, model__dtype="auto", training__learning_rate="auto")).config
    assert config.model.dtype in ("bfloat16", "float32")
    assert (config.training.learning_rate, config.training.optim) == (2e-4, "adamw")
    assert config.training.gradient_checkpointing is False
    full = plan_run(tiny_config(tmp_path, method="full", training__learning_rate="auto"))
    assert full.config.training.learning_rate == 2e-5
    assert full.shape.trainable_parameters == full.shape.total_parameters


def test_steps_are_counted_over_epochs_and_fractions(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    for epochs, steps in ((1, 3), (2, 6), (2.5, 8), (0.1, 1)):
        plan = plan_run(tiny_config(tmp_path, training__max_steps=None, training__num_train_epochs=epochs))
        assert plan.steps == steps


def test_a_share_of_steps(tmp_path: Path) -> None:
    plan = plan_run(tiny_config(tmp_path, training__max_steps=20, training__eval_steps=0.25, training__save_steps=7))
    assert (plan.eval_every, plan.save_every) == (5, 7)


@pytest.mark.parametrize(
    ("steps", "every", "keep", "checkpoints"),
    [(20, 7, 3, 3), (20, 2, 3, 5), (20, 7, None, 3), (21, 7, None, 3), (20, None, None, 7), (3, 7, 3, 1)],
)
def test_room_is_needed_for_as_many_checkpoints_as_there_are_at_once(
    tmp_path: Path, steps: int, every: int | None, keep: int | None, checkpoints: int
) -> None:
    """An epoch has three steps."""
    saving = {"training__save_steps": every, "training__save_total_limit": keep}
    assert plan_run(tiny_config(tmp_path, training__max_steps=steps, **saving)).checkpoints == checkpoints


def test_problems_of_model_and_data_are_found_together(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    config = tiny_config(
        tmp_path, lora__layers=[99], data__train=str(tmp_path / "absent.jsonl"), training__report_to=["tensorbord"],
        data__chat_template=str(tmp_path / "absent.jinja"),
    )  # fmt: skip
    with pytest.raises(InvalidInputError) as error:
        api.check(config)
    keys = [problem.key for problem in error.value.problems]
    assert "lora.layers" in keys
    assert "training.report_to" in keys
    assert any(problem.where and "absent" in problem.where for problem in error.value.problems)


def test_rows_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="more than the 512 positions"):
        plan_run(tiny_config(tmp_path, data__max_length=4096))


def test_targets_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="more than the 512 positions") as error:
        plan_run(tiny_config(tmp_path, task="seq2seq_lm", model_type="bart", data__max_target_length=4096))
    assert [problem.key for problem in error.value.problems] == ["data.max_target_length"]


def test_a_base_that_is_named_by_a_path_of_this_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tiny_config(tmp_path).model.name_or_path
    for name, method, told in ((here, "lora", 1), ("model", "lora", 0), (here, "full", 0)):
        notes = plan_run(tiny_config(tmp_path, method=method, model__name_or_path=name)).notes
        assert sum("`base_model=MODEL`" in note and here in note for note in notes) == told


@pytest.mark.parametrize("model_type", ["t5", "bart", "m2m_100"])
def test_a_decoder_without_a_start_token_is_refused_before_its_weights_are_read(
    tmp_path: Path, model_type: str
) -> None:
    data = {"data__source_lang": "en", "data__target_lang": "fr"}
    config = tiny_config(tmp_path, task="seq2seq_lm", model_type=model_type, **data)
    api.check(config)
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder_start_token_id": None}))
    with pytest.raises(InvalidInputError, match="no start token"):
        api.check(config)


def test_weights_that_draw_no_row_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    light = [{"path": config.data.train[0].path, "weight": 0.001}]
    with pytest.raises(InvalidInputError, match="draws no row"):
        api.check(tiny_config(tmp_path, data__train=light))


def test_plain_kernels_keep_more_on_a_gpu(tmp_path: Path) -> None:
    on_cuda = plan_run(tiny_config(tmp_path, training__kernels="plain"), StatedDevice("cuda", 24 * 10**9))
    fused = plan_run(tiny_config(tmp_path), StatedDevice("cuda", 24 * 10**9))
    assert fused.memory.activations < on_cuda.memory.activations


@pytest.mark.parametrize(
    ("model_type", "device", "said"), [("gemma2", "cuda", 1), ("gemma2", "cpu", 0), ("llama", "cuda", 0)]
)
def test_capped_attention_is_said_on_a_gpu(tmp_path: Path, model_type: str, device: Any, said: int) -> None:
    stated = StatedDevice(device, 24 * 10**9 if device == "cuda" else None)
    notes = plan_run(tiny_config(tmp_path, model_type=model_type, model__dtype="bfloat16"), stated).notes
    assert len([note for note in notes if "caps the scores" in note]) == said
    plain = tiny_config(tmp_path, model_type=model_type, model__dtype="bfloat16", training__kernels="plain")
    assert len([note for note in plan_run(plain, stated).notes if "row by row" in note]) == said


def test_fill_says_how_many_steps_remain(tmp_path: Path) -> None:
    write_rows(tmp_path / "many.jsonl", rows(40))
    plan = plan_run(tiny_config(tmp_path, data__packing="fill", data__train=str(tmp_path / "many.jsonl")))
    (told,) = [note for note in plan.notes if "packing fill" in note]
    assert told == f"data.packing fill: {plan.batches.steps(0)} optimizer steps an epoch remain of 10"
    assert plan.batches.steps(0) < 10


@pytest.mark.parametrize(
    ("count", "told"), [(8, ["data.packing fill: 1 optimizer step an epoch remains of 2"]), (4, [])]
)
def test_fill_of_one_step_is_said_where_it_says_something(tmp_path: Path, count: int, told: list[str]) -> None:
    write_rows(tmp_path / "few.jsonl", rows(count))
    plan = plan_run(tiny_config(tmp_path, data__packing="fill", data__train=str(tmp_path / "few.jsonl")))
    assert [note for note in plan.notes if "packing fill" in note] == told


def test_a_family_that_cannot_be_packed_is_padded_and_it_is_said(tmp_path: Path) -> None:
    plan = plan_run(tiny_config(tmp_path, model_type="bloom"))
    assert not plan.layout.packed
    assert any("padded on the right" in note for note in plan.notes)
    with pytest.raises(InvalidInputError, match="cannot be laid end to end"):
        plan_run(tiny_config(tmp_path, data__packing="fill"))


def test_sources_are_filled_whatever_length_targets_may_have(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, task="seq2seq_lm", model__dtype="bfloat16", data__max_target_length=16)
    layout = plan_run(config).layout
    assert [layout.filled(longest) for longest in (13, 70, 255)] == [13, 72, 256]


def test_checkpointing_is_turned_on_where_memory_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    config = tiny_config(tmp_path)
    whole, plan = placement.select_device, plan_run(config)
    between = plan.memory.peak_bytes - plan.memory.activations // 4
    monkeypatch.setattr(
        "loraft.planning.known_run.select_device", lambda *given: replace(whole(*given), available_bytes=between)
    )
    tight = plan_run(config)
    assert tight.config.training.gradient_checkpointing is True
    assert any("gradient_checkpointing auto is on" in note for note in tight.notes)


def test_c24_missing_tensors_are_found_by_check(tmp_path: Path) -> None:
    """C24: before any weight is loaded."""
    from safetensors.torch import load_file, save_file

    config = tiny_config(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    for verb in (api.check, api.train):
        with pytest.raises(InvalidInputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            verb(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_report_has_the_keys_that_others_rely_on(tmp_path: Path) -> None:
    report = api.check(tiny_config(tmp_path, method="qlora")).as_dict()
    assert {"model", "data", "adapter", "memory", "steps"} <= report.keys()
    assert {"trainable_parameters", "total_parameters"} <= report["adapter"].keys()
    assert report["memory"]["peak_bytes"] > 0
    assert report["model"]["quantized_parameters"] > 0
    assert len(report["data"]["samples"]) == 3


def test_a_token_that_stands_in_for_padding_is_said(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert not any("no padding token" in note for note in plan_run(config).notes)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(config.model.name_or_path)
    assert any("the tokenizer has no padding token" in note for note in plan_run(config).notes)


@pytest.mark.slow
def test_another_adapter_to_start_from_is_refused_before_a_weight_is_loaded(tmp_path: Path) -> None:
    saved = api.train(tiny_config(tmp_path, training__max_steps=1)).saved
    start = {"lora__start_from": str(saved)}
    assert plan_run(tiny_config(tmp_path, **start)).steps > 0
    with pytest.raises(InvalidInputError) as caught:
        plan_run(tiny_config(tmp_path, **start, lora__r=8))
    assert {"lora.r", "lora.start_from"} <= {problem.key for problem in caught.value.problems}
    save_tiny(tmp_path / "model", seed=3)
    with pytest.raises(InvalidInputError, match="other base weights"):
        plan_run(tiny_config(tmp_path, **start))


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """Let plans be made for a GPU with so many bytes available."""
    placement = DeviceConfig("cuda", torch.bfloat16, "a GPU", 2 * available, available, ())
    monkeypatch.setattr("loraft.planning.known_run.select_device", lambda *_: placement)
    for place in ("run_plan", "strategy"):
        monkeypatch.setattr(f"loraft.planning.{place}.require_optimizer", lambda *_: None)


@pytest.mark.parametrize(("method", "available", "optim"), [
    ("qlora", 10**9, "adamw"), ("qlora", 0, "paged_adamw_32bit"), ("lora", 0, "adamw")
])  # fmt: skip
def test_auto_pages_the_state_of_an_optimizer_only_where_it_might_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, available: int, optim: str
) -> None:
    on_a_gpu(monkeypatch, available)
    plan = plan_run(tiny_config(tmp_path, method=method, model__dtype="bfloat16"))
    assert plan.config.training.optim == optim
    assert any("auto is paged_adamw_32bit" in note for note in plan.notes) == (optim != "adamw")


def test_state_that_is_paged_need_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, 10**9)

    def plan(optim: str) -> RunPlan:
        options = {"method": "qlora", "model__dtype": "bfloat16", "training__gradient_checkpointing": True}
        return plan_run(tiny_config(tmp_path, training__optim=optim, **options))

    memory = plan("adamw").memory
    on_a_gpu(monkeypatch, memory.peak_bytes - memory.optimizer // 2)
    for optim, fits in (("adamw", False), ("paged_adamw_32bit", True)):
        known = plan(optim)
        assert (too_large(known, known.memory) is None) == fits
