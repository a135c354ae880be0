"""`training.cache_frozen_prefix` as one asks for it: said beforehand, stopped, damaged, resumed, switched off."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from loraft.training import loop
from tests.cli.conftest import Loraft, WriteConfig
from tests.training.test_trainer import metrics
from tests.words import Wording

ADAPTER = "adapter/adapter_model.safetensors"
OPTIONS = ("lora.layers=last:1", "lora.dropout=0.1", "data.shuffle=batches", "training.max_steps=14")
KEPT = "training.cache_frozen_prefix=true"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_and_damaged_ends_with_the_bytes_of_one_that_kept_nothing(
    dtype: str, loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches an epoch; it is stopped in the middle of the second."""
    command = ("train", str(config()), *OPTIONS, "training.logging_steps=1", f"model.dtype={dtype}")
    assert loraft(*command, "training.output_dir=off").exit_code == 0
    tell = loop.tell_step

    def told(run: Any, state: Any, clock: Any) -> None:
        tell(run, state, clock)
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as stopping:
        stopping.setattr(loop, "tell_step", told)
        assert loraft(*command, "training.output_dir=on", KEPT).exit_code == 128 + signal.SIGTERM
    pieces = sorted(Path("on/frozen_prefix").rglob("*.states"))
    pieces[0].write_bytes(pieces[0].read_bytes()[:-7])
    pieces[1].unlink()
    for piece in pieces[2:4]:
        piece.write_bytes(b"")
    result = loraft(*command, "training.output_dir=on", KEPT, "--resume")
    assert result.exit_code == 0, result.stderr
    assert metrics(Path("on")) == metrics(Path("off"))
    assert Path("on", ADAPTER).read_bytes() == Path("off", ADAPTER).read_bytes()
    assert not Path("on/frozen_prefix").exists()


@pytest.mark.slow
def test_it_is_switched_off_in_the_middle_of_a_run(loraft: Loraft, config: WriteConfig) -> None:
    command = ("train", str(config()), *OPTIONS, "training.output_dir=run-2")
    assert loraft(*command, KEPT).exit_code == 0
    logged = metrics(Path("run-2"))
    shutil.rmtree("run-2/adapter")
    shutil.rmtree("run-2/checkpoints/step-000014")
    Path("run-2/frozen_prefix").mkdir()
    result = loraft(*command, "--resume")
    assert result.exit_code == 0, result.stderr
    assert metrics(Path("run-2")) == logged
    assert not Path("run-2/frozen_prefix").exists()


def test_the_bytes_are_told_before_and_must_be_free(
    loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch, wording: Wording
) -> None:
    command = ("check", str(config()), *OPTIONS, KEPT)
    told = json.loads(loraft(*command, "--json").stdout)["training"]["frozen_prefix_bytes"]
    assert told > 0
    assert "frozen_prefix" not in loraft(*command, "training.cache_frozen_prefix=false", "--json").stdout
    free = shutil.disk_usage(".")._replace(free=900_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert loraft(*command).exit_code == 0
    monkeypatch.setattr("loraft.planning.run_plan.frozen_prefix_bytes", lambda *_: 10**9)
    result = loraft(*command)
    assert result.exit_code == 2
    wording(result.stderr)


@pytest.mark.parametrize(
    "options",
    [("data.shuffle=true",), ("training.neftune_noise_alpha=5",), ("lora.layers=all",), ("method=full",)],
    ids=lambda options: options[0],
)
def test_what_cannot_be_kept_is_refused(
    loraft: Loraft, config: WriteConfig, options: tuple[str, ...], wording: Wording
) -> None:
    result = loraft("train", str(config()), *OPTIONS, KEPT, *options)
    assert result.exit_code == 2
    wording(result.stderr)
