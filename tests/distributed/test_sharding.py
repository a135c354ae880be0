"""Weights in parts: gathered they compute what whole ones do, and between steps each rank has its part alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from loraft import api
from loraft.events import Event, Note
from tests.distributed.forked import forked
from tests.distributed.test_gradients import SPLITS, assert_same, measured
from tests.distributed.test_resume_over_ranks import logged, trained
from tests.training.building import tiny_config

PARTS: dict[str, Any] = {"distributed__strategy": "fsdp2", "training__per_device_train_batch_size": 2}
KINDS: dict[str, dict[str, Any]] = {
    "saved": {
        "lora__use_dora": True,
        "lora__modules_to_save": ["lm_head"],
        "training__gradient_checkpointing": True,
        "training__tiled_mlp": True,
    },
    "in 4 bits": {"method": "qlora", "training__gradient_checkpointing": True, "lora__init": "pissa"},
    "dora in 4 bits": {"method": "qlora", "lora__use_dora": True},
    "pairs": {"task": "preference", "training__max_steps": 4},
    "experts": {"model_type": "mixtral", "method": "full", "distributed__reshard": False},
}
"""What else a run may be made of."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "split", "method", "world"),
    [
        ("causal_lm", "packed", "lora", 2),
        ("causal_lm", "padded", "full", 3),
        ("seq2seq_lm", "padded", "lora", 3),
        ("seq2seq_lm", "padded", "full", 2),
        ("seq_cls", "packed", "lora", 2),
        ("seq_cls", "padded", "full", 3),
        ("causal_lm", "filled", "qlora", 2),
        ("preference", "packed", "lora", 2),
        ("preference", "padded", "qlora", 2),
    ],
)
def test_parts_compute_what_one_process_does_and_are_parts(
    tmp_path: Path, task: str, split: str, method: str, world: int
) -> None:
    """C9; bitsandbytes' weights, which accelerate leaves whole, are in parts too."""
    overrides = {"task": task, "method": method, **SPLITS[split], **PARTS}
    tiny_config(tmp_path, **overrides)
    (alone,) = forked(1, lambda ranks: measured(tmp_path, ranks, 4, overrides))
    assert not isinstance(alone, str), alone
    for each in forked(world, lambda ranks: measured(tmp_path, ranks, 4, overrides)):
        assert not isinstance(each, str), each
        assert_same(each, alone)
        assert each["bytes"] / alone["bytes"] < 1.1 / world


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_of_two_machines_holds_the_whole_model_in_the_parts_of_its_ranks(tmp_path: Path, method: str) -> None:
    overrides = {"method": method, "distributed__hybrid_shard": True, **PARTS}
    tiny_config(tmp_path, **overrides)
    (alone,) = forked(1, lambda ranks: measured(tmp_path, ranks, 4, PARTS | {"method": method}))
    assert not isinstance(alone, str), alone
    for each in forked(4, lambda ranks: measured(tmp_path, ranks, 4, overrides), machines=2):
        assert not isinstance(each, str), each
        assert_same(each, alone)
        assert 0.45 < each["bytes"] / alone["bytes"] < 0.55, "half of it, as on two ranks"


@pytest.mark.slow
def test_a_head_that_the_files_have_for_other_classes_begins_anew_in_parts(tmp_path: Path) -> None:
    """Of the same shape, so that it is loaded first."""
    options = {"task": "seq_cls", **PARTS}
    tiny_config(tmp_path, **options)
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    made.config.id2label = dict(enumerate(("a", "b", "c")))
    made.save_pretrained(tmp_path / "model")
    (alone,) = forked(1, lambda ranks: measured(tmp_path, ranks, 4, options))
    assert not isinstance(alone, str), alone
    for each in forked(2, lambda ranks: measured(tmp_path, ranks, 4, options)):
        assert not isinstance(each, str), each
        assert_same(each, alone)


def said_in(folder: Path, world: int, **overrides: Any) -> list[str]:
    """What a run of `world` ranks notes."""

    def act(_: object) -> list[str]:
        said: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, Note):
                said.append(event.text)

        api.train(tiny_config(folder, **overrides), observer=hear)
        return said

    tiny_config(folder, **overrides)  # its files, once
    first, *_ = forked(world, act)
    assert isinstance(first, list), first
    return first


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_in_parts_is_saved_as_one_process_saves_it(tmp_path: Path, kind: str) -> None:
    options = {"training__max_steps": 3, **KINDS[kind], **PARTS, "data__eval": 0.2, "training__eval_steps": 1}
    options |= {"training__sample_prompts": ["the order"], "generation__max_new_tokens": 4}
    for name, world, batches in (("one", 1, 2), ("two", 2, 1)):
        run = str(tmp_path / name)
        said_in(tmp_path, world, training__output_dir=run, training__gradient_accumulation_steps=batches, **options)
    saved = "model/model" if options.get("method") == "full" else "adapter/adapter_model"
    alone, both = (load_file(tmp_path / name / f"{saved}.safetensors") for name in ("one", "two"))
    assert alone.keys() == both.keys()
    assert max((alone[name] - both[name]).abs().max().item() for name in alone) < 1e-4, "after three steps of Adam"
    assert logged(tmp_path / "one")[-1]["eval_loss"] == pytest.approx(logged(tmp_path / "two")[-1]["eval_loss"], 1e-5)
    answers = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "now"), [("qlora", 2), ("lora", 1)])
def test_a_run_in_parts_goes_on(tmp_path: Path, method: str, now: int) -> None:
    """Bit for bit with as many ranks, with dropout; with others the same steps."""
    options: dict[str, Any] = {"method": method, "training__max_steps": 5, **PARTS}
    options |= {"lora__dropout": 0.3} if now == 2 else {}
    trained(tmp_path, "whole", 2, **options)
    trained(tmp_path, "moved", 2, stop=2, **options)
    trained(tmp_path, "moved", now, **options)
    before, after = logged(tmp_path / "whole"), logged(tmp_path / "moved")
    if now == 2:
        assert after == before
        ends = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "moved")]
        assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
    for one, other in zip(before, after, strict=True):
        assert (one["step"], one["tokens"]) == (other["step"], other["tokens"])
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_named_by_all_ranks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = tiny_config(tmp_path, **PARTS)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    last = next(name for name in reversed(tensors) if name.endswith("down_proj.weight"))
    tensors[last][-1, -1] = float("nan")  # which rank 1 has
    save_file(tensors, file, metadata={"format": "pt"})

    def act(_: object) -> None:
        api.train(config)

    for traceback in forked(2, act):
        assert isinstance(traceback, str)
        assert "NonFiniteError" in traceback
        assert f"{last} holds NaN or infinity" in traceback
