"""`loraft check` for another device: what a run needs there, and the config that fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.models.device import CUDA_TAKES
from tests.cli.conftest import Loraft, WriteConfig


@pytest.mark.slow
def test_a_run_is_planned_for_a_gpu_that_is_not_here(loraft: Loraft, config: WriteConfig) -> None:
    done = loraft("check", str(config(method="qlora")), "--device", "cuda", "--gpu-memory", "24GB", "--json")
    document = json.loads(done.stdout)
    assert document["model"]["device"] == "a GPU of 24.0 GB"
    assert document["memory"]["available_bytes"] == 24 * 10**9 - CUDA_TAKES
    assert document["model"]["dtype"] == "float32", "as the config says"
    assert any("planned for a GPU of 24.0 GB" in note for note in document["notes"])


@pytest.mark.slow
def test_a_run_is_planned_for_several_gpus(loraft: Loraft, config: WriteConfig) -> None:
    path, memory = str(config()), ("--gpu-memory", "24GB")
    one, two = (
        json.loads(loraft("check", path, *memory, *words, "--json").stdout) for words in ((), ("--num-processes", "2"))
    )
    assert two["training"]["rows_a_step"] == 2 * one["training"]["rows_a_step"]
    assert two["memory"]["peak_bytes"] == one["memory"]["peak_bytes"], "each holds everything"
    assert any("distributed.strategy auto is ddp" in note for note in two["notes"])
    parts = json.loads(
        loraft("check", path, "distributed.strategy=fsdp2", *memory, "--num-processes", "2", "--json").stdout
    )
    assert parts["memory"]["optimizer"] == two["memory"]["optimizer"] // 2
    for words in (("--measure", "1"), ("--fit", "24GB")):
        assert loraft("check", path, "--num-processes", "2", *words).exit_code == 2


def test_time_is_predicted_for_a_gpu_that_is_known(loraft: Loraft, config: WriteConfig) -> None:
    path = str(config())
    done = loraft("check", path, "model.dtype=auto", "--gpu-name", "rtx-4090", "--json")
    document = json.loads(done.stdout)
    assert document["model"]["device"] == "RTX 4090 of 24.0 GB"
    time = document["time"]
    assert 0 < time["milliseconds_a_step"]["from"] < time["milliseconds_a_step"]["to"]
    assert time["all_steps_seconds"]["to"] == pytest.approx(
        document["steps"] * time["milliseconds_a_step"]["to"] / 1000, rel=0.06
    )
    assert "measured on no GPU" in time["assumed"]
    unknown = json.loads(loraft("check", path, "--gpu-memory", "24GB", "--json").stdout)
    assert "time" not in unknown
    assert any("no time is predicted" in note and "--gpu-name" in note for note in unknown["notes"])


@pytest.mark.slow
def test_a_config_is_written_that_fits(loraft: Loraft, config: WriteConfig) -> None:
    path, kept = str(config()), "training.gradient_checkpointing=false"
    whole = json.loads(loraft("check", path, kept, "--gpu-memory", "24GB", "--json").stdout)["memory"]["peak_bytes"]
    tight = str(CUDA_TAKES + whole - 1)
    refused = loraft("check", path, kept, "--gpu-memory", tight)
    assert refused.exit_code == 2
    assert "needs about" in refused.stderr
    done = loraft("check", path, kept, "training.logging_steps=3", "--fit", tight, "--json")
    found = json.loads(done.stdout)
    assert found["fits"] == "tickets-fit.yaml"
    assert found["changes"] == {"training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 2}
    assert loraft("check", "tickets-fit.yaml", "--gpu-memory", tight).exit_code == 0
    assert "logging_steps: 3" in Path("tickets-fit.yaml").read_text()

    Path("tickets-fit.yaml").write_text("mine: 1\n")
    taken = loraft("check", path, kept, "--fit", tight)
    assert (taken.exit_code, Path("tickets-fit.yaml").read_text()) == (2, "mine: 1\n")
    assert "is there already" in taken.stderr
    Path("tickets-fit.yaml").write_bytes(b"\xff")
    assert loraft("check", path, kept, "--fit", tight).exit_code == 2
    Path("tickets-fit.yaml").unlink()
    Path("tickets-fit.yaml").mkdir()
    assert loraft("check", path, kept, "--fit", tight).exit_code == 2


def test_what_fits_is_left_as_it_is(loraft: Loraft, config: WriteConfig) -> None:
    done = loraft("check", str(config()), "--fit", "24GB")
    assert "fits as it is" in done.stdout
    assert not Path("tickets-fit.yaml").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--gpu-memory", "much"],
        ["--gpu-memory", "24"],
        ["--device", "cpu", "--gpu-memory", "24GB"],
        ["--fit", "24GB", "--gpu-memory", "24GB"],
        ["--measure", "2", "--fit", "24GB"],
        ["--device", "cpu", "--gpu-name", "L4"],
        ["--measure", "2", "--gpu-name", "L4"],
        ["--fit", "24GB", "--gpu-name", "L4"],
        ["--gpu-name", "RTX 409"],
    ],
)
def test_contradictions_are_refused(loraft: Loraft, config: WriteConfig, options: list[str]) -> None:
    assert loraft("check", str(config()), *options).exit_code == 2


def test_a_gpu_that_is_not_here_needs_its_memory_said(
    loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = loraft("check", str(config()), "--device", "cuda")
    assert done.exit_code == 2
    assert "--gpu-memory" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["auto", "fill"])
def test_time_is_measured_by_a_few_steps(loraft: Loraft, config: WriteConfig, packing: str) -> None:
    """Of one epoch it is that of all its tokens, however many rows are filled into one."""
    words = (f"data.packing={packing}", "training.max_steps=null", "training.num_train_epochs=1")
    told = json.loads(loraft("check", str(config()), *words, "--measure", "2", "--json").stdout)
    measured = told["measured"]
    assert measured["steps"] == 2
    assert measured["tokens_per_second"] > 0
    tokens = measured["all_steps_seconds"] * measured["tokens_per_second"]
    assert tokens == pytest.approx(told["data"]["tokens"], rel=1e-6)
