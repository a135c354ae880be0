"""Schedules, optimizers, LoRA+, NEFTune and smoothed labels as one asks for them: trained, resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bitsandbytes.optim import AdEMAMix8bit

from tests.cli.conftest import Loraft, WriteConfig
from tests.optimization.test_schedule import of_transformers
from tests.training.test_trainer import metrics
from tests.words import Wording

ADAPTER = "adapter/adapter_model.safetensors"
MIN_LR = ("training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr_rate: 0.1}")


def train(loraft: Loraft, config: Path, *overrides: str, run: str = "runs/made") -> list[dict[str, Any]]:
    """Train as a person does, and read what was logged."""
    result = loraft("train", str(config), f"training.output_dir={run}", *overrides)
    assert result.exit_code == 0, result.stderr
    return metrics(Path(run))


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["muon", "ademamix_8bit", "lion_8bit", "adafactor"])
def test_a_run_with_each_optimizer_resumes_to_the_same_bytes(loraft: Loraft, config: WriteConfig, optim: str) -> None:
    """From the checkpoint of step 2, as after a kill; with noise, whose generator goes on too, and LoRA+."""
    options = (f"training.optim={optim}", "training.neftune_noise_alpha=5", "lora.plus_ratio=4", "lora.r=128")
    logged = train(loraft, config(), *options)
    assert [line["step"] for line in logged if "loss" in line] == [2, 4]
    run = Path("runs/made")
    whole = (run / ADAPTER).read_bytes()
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints/step-000004")
    result = loraft("train", "tickets.yaml", "--resume", f"training.output_dir={run}", *options)
    assert result.exit_code == 0, result.stderr
    assert "going on from step-000002" in result.stderr
    assert (run / ADAPTER).read_bytes() == whole
    assert metrics(run) == logged


@pytest.mark.slow
def test_the_logged_rates_are_those_of_transformers(loraft: Loraft, config: WriteConfig) -> None:
    options = ("training.logging_steps=1", "training.learning_rate=3e-4", "training.warmup_steps=0.5")
    logged = train(loraft, config(), *MIN_LR, *options)
    rates = [line["learning_rate"] for line in logged if "loss" in line]
    assert rates == of_transformers("cosine_with_min_lr", {"min_lr_rate": 0.1}, warmup=2, steps=4)


def test_check_tells_what_is_trained_by_which_rule(loraft: Loraft, config: WriteConfig, wording: Wording) -> None:
    options = ("training.optim=muon", "lora.plus_ratio=4", "lora.use_dora=true", "training.optim=muon")
    report = json.loads(loraft("check", str(config()), *options, *MIN_LR, "--json").stdout)
    wording("\n".join(note for note in report["notes"] if "muon" in note or "plus_ratio" in note))
    assert report["training"]["optim"] == "muon"
    assert report["memory"]["optimizer"] < 1.1 * report["memory"]["gradients"]
    assert report["training"]["last_learning_rate"] > 0.1 * 0.03


@pytest.mark.slow
def test_an_evaluation_is_not_smoothed(loraft: Loraft, config: WriteConfig) -> None:
    """The evaluation of a run whose labels were smoothed is that of `loraft evaluate`, which knows nothing of it."""
    logged = train(loraft, config(), "training.label_smoothing_factor=0.4")
    result = loraft("evaluate", "runs/made", "--data", "rows.jsonl", "--metrics", "loss", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["loss"] == pytest.approx(logged[-1]["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.lr_scheduler_type=cosine_with_min_lr",),
        ("training.lr_scheduler_type=warmup_stable_decay",),
        (*MIN_LR, "training.lr_scheduler_kwargs.min_lr=1e-5"),
        ("training.lr_scheduler_kwargs={min_lr_rate: 0.1}",),
        ("training.lr_scheduler_type=polynomial", "training.lr_scheduler_kwargs={lr_end: 1}"),
        ("training.lr_scheduler_type=inverse_sqrt", "training.lr_scheduler_kwargs={timescal: 9}"),
        ("training.min_lr=1e-5",),
        ("training.optim=paged_lion_8bit",),
        ("training.label_smoothing_factor=1",),
        ("training.neftune_noise_alpha=0",),
        ("lora.plus_ratio=0",),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused(
    loraft: Loraft, config: WriteConfig, wording: Wording, overrides: tuple[str, ...]
) -> None:
    for command in ("check", "train"):
        result = loraft(command, str(config()), *overrides)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr
    wording(result.stderr)
    assert not Path("runs").exists()


def test_an_optimizer_that_bitsandbytes_cannot_step_is_refused(
    loraft: Loraft, config: WriteConfig, wording: Wording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel for cpu")

    monkeypatch.setattr(AdEMAMix8bit, "step", fail)
    result = loraft("train", str(config()), "training.optim=ademamix_8bit")
    assert result.exit_code == 2
    wording(result.stderr)
    assert not Path("runs").exists()
