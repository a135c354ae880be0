"""Models of a real size on the device that computes nothing: what is held at most is what `check` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_rehearsal.test_rehearsal import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUNS = [
    ("llama-3.1-8b", "qlora", "off", 2048),
    ("llama-3.1-8b", "qlora", "on", 2048),
    ("llama-3.1-8b", "lora", "on", 8192),
    ("llama-2-70b", "qlora", "on", 2048),
]
CLOSE = 0.1


@pytest.mark.parametrize(("name", "method", "checkpointing", "tokens"), RUNS)
def test_the_peak_is_predicted(name: str, method: str, checkpointing: str, tokens: int, library: Path) -> None:
    """To a tenth, parts and all; and however many layers there are, a step waits for the device once."""
    command = [sys.executable, "-m", "tests.cuda_rehearsal.geometry", str(library)]
    command += [name, method, checkpointing, str(tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    predicted = found["predicted"]
    print(name, method, checkpointing, tokens, found["peak"], predicted["peak_bytes"], found["launches"])
    assert found["weights"] == pytest.approx(predicted["weights"] + predicted["adapter"], rel=0.01)
    assert predicted["peak_bytes"] == pytest.approx(found["peak"], rel=CLOSE)
    assert found["waits"] == 1
