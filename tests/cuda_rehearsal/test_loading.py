"""Loading on the device that computes nothing: at most what is in 4 bits already and one tensor in 16 is held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loraft.config.sections import QuantizationSection
from loraft.kernels.transfer import pinned_bytes
from loraft.models.quantize import quantized_bytes
from tests.cuda_rehearsal.geometry import GEOMETRIES
from tests.cuda_rehearsal.seen_once import ROOT

pytestmark = pytest.mark.slow

NAME, LAYERS = "llama-2-70b", 4


@pytest.mark.parametrize("how", ["resident", "fed"])
def test_no_more_than_a_tensor_is_held_in_16_bits_while_a_70b_is_quantized(how: str, library: Path) -> None:
    """Of its 80 layers four, in the full width; of fed ones two are on the device, and the embeddings or the head."""
    command = [sys.executable, "-m", "tests.cuda_rehearsal.loading", str(library), NAME, str(LAYERS), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, sizes = json.loads(done.stdout.splitlines()[-1]), GEOMETRIES[NAME]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    of_keys = hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    numbers = hidden * (2 * hidden + 2 * of_keys + 3 * inner)
    layer, end = quantized_bytes(numbers, 0, QuantizationSection()), 2 * hidden * sizes["vocab_size"]
    fed = how == "fed"
    assert found["devices"] == ["cuda"]
    assert found["held"] == pytest.approx(end + 2 * layer if fed else 2 * end + LAYERS * layer, rel=0.01)
    assert found["peak"] <= found["held"] + 2 * hidden * inner + 2**20
    assert found["host"] == (LAYERS * pinned_bytes(layer) + 2 * pinned_bytes(end) if fed else 0)
