"""Weights in parts on two GPUs, gathered by NCCL: what one GPU trains, with parts on the GPUs or on the host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import lay_out

pytestmark = pytest.mark.gpu

WITHOUT_DRAWS = ("lora.dropout=0", "training.eval_steps=2")


def losses(folder: Path, name: str, world: int, *options: str) -> list[float]:
    """The logged losses of a run of so many ranks."""
    batches = f"training.gradient_accumulation_steps={2 // world}"
    given = [f"training.output_dir={name}", batches, *WITHOUT_DRAWS, *options, "--num-processes", str(world)]
    command = [sys.executable, "-m", "loraft", "train", "c.yaml", *given]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("offload", ["false", "true"])
def test_parts_on_two_gpus_train_what_one_does(tmp_path: Path, method: str, offload: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: a rank takes one of its own")
    lay_out(tmp_path)
    alone = losses(tmp_path, "one", 1, f"method={method}")
    parts = ("distributed.strategy=fsdp2", f"distributed.cpu_offload={offload}", "distributed.timeout_seconds=60")
    assert losses(tmp_path, "two", 2, f"method={method}", *parts) == pytest.approx(alone, abs=1e-3)
