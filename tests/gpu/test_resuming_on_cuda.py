"""Runs on a GPU that were stopped, or killed, and go on: as equal to a whole run as whole runs are to one another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from loraft import api
from loraft.errors import Interrupted
from tests.cli.running import loraft
from tests.gpu.runs import METHODS, equal, written
from tests.training.test_trainer import metrics, stop_at
from tests.training.wide import wide_config

pytestmark = pytest.mark.gpu(or_cpu=True)

SECONDS = 120


def trained(run: Any) -> dict[str, Tensor]:
    (weights,) = run.saved.glob("*.safetensors")
    return load_file(weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_a_whole_one(tmp_path: Path, method: str) -> None:
    def config(output: str) -> Any:
        return wide_config(
            tmp_path, training__output_dir=str(tmp_path / output), training__save_steps=2, training__max_steps=6,
            **METHODS[method],
        )  # fmt: skip

    whole, other = api.train(config("whole")), api.train(config("other"))
    with pytest.raises(Interrupted):
        api.train(config("stopped"), observer=stop_at(3))
    again = api.train(config("stopped"), resume=True)
    if equal(trained(whole), trained(other)):  # no kernel of these added in another order
        assert equal(trained(again), trained(whole))
    for name, tensor in trained(whole).items():
        torch.testing.assert_close(trained(again)[name], tensor, rtol=1e-2, atol=1e-3)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """In a process of its own: CUDA cannot go on in a fork."""
    place = written(tmp_path, **METHODS["qlora"])
    words = ("train", "c.yaml", "training.max_steps=60", "training.save_steps=5", "training.logging_steps=1")
    with (place / "log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-m", "loraft", *words], cwd=place, stdout=log, stderr=log)
    deadline = time.monotonic() + SECONDS
    while not list((place / "run/checkpoints").glob("step-*")):
        assert run.poll() is None, (place / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = loraft(*words, "--resume", cwd=place)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(place / "run") if "loss" in line] == list(range(1, 61))
