"""Models of a real size on the device that computes nothing: what is held at most is what `check` says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from loraft.models.device import CUDA_TAKES
from tests.cuda_rehearsal.seen_once import written_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FED, IN_8_BITS = "model.stream_layers=true", 'training.optim="adamw_8bit"'
IN_TILES = "training.tiled_mlp=true"
RUNS = {
    "llama-3.1-8b qlora on 2048": 80,
    "llama-2-70b qlora on 2048": 48,
    f"llama-3.1-8b qlora offload 2048 {FED} {IN_8_BITS}": 4,
    f"llama-3.1-8b-4-layers qlora on 32768 {IN_TILES}": 8,
    "llama-33b qlora on 512": 24,
    "llama-3.1-8b-4-layers qlora off 2048": 4,
    "llama-3.1-8b-4-layers lora on 8192": 8,
    "llama-3.1-8b-4-layers qlora off 1024 lora.dropout=0.05": 4,
    "llama-3.1-8b-4-layers qlora on 1024 lora.use_dora=true": 4,
    "llama-3.1-8b-4-layers qlora off 1024 lora.use_dora=true lora.dropout=0.05": 8,
    "llama-3.1-8b-4-layers lora off 1024 lora.use_dora=true lora.dropout=0.05": 8,
}
"""Runs, and the GB of the device that they stay within, what CUDA takes for itself left free."""
CLOSE = 0.1


@cache
def seen(library: Path) -> dict[str, Any]:
    """What was held in all runs, which one process of the session tries for all others."""
    runs = [f"{run} gpu={memory * 10**9}" for run, memory in RUNS.items()]
    return written_once(library.with_name("geometry.json"), "tests.cuda_rehearsal.geometry", library, runs)


@pytest.mark.parametrize(("run", "memory"), RUNS.items(), ids=list(RUNS))
def test_the_peak_is_predicted(run: str, memory: int, library: Path) -> None:
    """To a tenth, parts and all; and however many layers there are, a step waits for the device once."""
    found = seen(library)[f"{run} gpu={memory * 10**9}"]
    predicted = found["predicted"]
    print(run, found["peak"], predicted["peak_bytes"], found["launches"])
    assert found["weights"] == pytest.approx(predicted["weights"] + predicted["adapter"], rel=0.01)
    assert found["host"] == pytest.approx(predicted.get("host_weights", 0), rel=0.01)
    assert found["peak"] < memory * 10**9 - CUDA_TAKES
    assert found["copies"] == 0
    assert predicted["peak_bytes"] == pytest.approx(found["peak"], rel=CLOSE)
    assert found["waits"] == 1
