"""Numbers in int32s: by hand, and against what was packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraft.kernels.int32_weights import INPUTS, numbers_in, of_awq, of_gptq
from tests.stored import BLOCK, IN_INT32, packed_in, save_stored
from tests.tiny import save_tiny

MODULE = "model.layers.0.mlp.up_proj"
NAMES = ("qweight", "qzeros", "scales", "g_idx")


@pytest.mark.parametrize(("bits", "count"), [(2, 16), (4, 8), (8, 4)])
def test_numbers_lie_from_the_lowest_bits_up(bits: int, count: int) -> None:
    numbers = (torch.arange(2 * count) % 2**bits).view(1, -1)
    numbers[0, -1] = 2**bits - 1  # the sign of the int32
    packed = packed_in(numbers, bits)
    assert packed.shape == (1, 2)
    shifts = range(0, 32, bits)
    assert numbers_in(packed, shifts).tolist() == numbers.tolist()
    assert numbers_in(packed.T, shifts, dim=0).T.tolist() == numbers.tolist()


def test_a_weight_by_hand() -> None:
    """Two groups of four inputs each, whose order is mixed: (q - zero) · scale."""
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]] * 8)
    parts = {
        "qweight": packed_in(codes, 4).T.contiguous(),
        "qzeros": packed_in(torch.tensor([[1] * 8, [3] * 8]), 4),
        "scales": torch.tensor([[0.5] * 8, [2.0] * 8]),
        "g_idx": torch.tensor([0, 1, 0, 1, 0, 1, 0, 1], dtype=torch.int32),
    }
    row = [0.0, -2.0, 1.0, 2.0, 2.0, 6.0, 3.0, 10.0]
    assert of_gptq(parts, torch.float32, zeros_less_one=False).tolist() == [row] * 8
    parts["qzeros"] = packed_in(torch.tensor([[0] * 8, [2] * 8]), 4)
    assert of_gptq(parts, torch.float32, zeros_less_one=True).tolist() == [row] * 8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_is_made_of_all_inputs_whatever_their_number(bits: int) -> None:
    """More of them than are made at once, and no multiple of that."""
    inputs = INPUTS + 64
    codes = torch.randint(2**bits, (32, inputs), generator=torch.Generator().manual_seed(0))
    parts = {
        "qweight": packed_in(codes, bits).T.contiguous(),
        "qzeros": packed_in(torch.ones(2, 32), bits),
        "scales": torch.tensor([[0.5], [2.0]]).expand(2, 32),
        "g_idx": torch.arange(inputs) % 2,
    }
    expected = (codes - 1) * torch.tensor([0.5, 2.0]).repeat(inputs // 2)
    assert torch.equal(of_gptq(parts, torch.float32, zeros_less_one=False), expected)


@pytest.mark.parametrize("kind", IN_INT32)
def test_what_was_packed_comes_back_within_a_step(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    before = load_file(save_tiny(tmp_path / "plain", **sizes) / "model.safetensors")[f"{MODULE}.weight"]
    stored = load_file(save_stored(tmp_path / "stored", kind, **sizes) / "model.safetensors")
    parts = {name: stored[f"{MODULE}.{name}"] for name in NAMES if f"{MODULE}.{name}" in stored}
    after = of_awq(parts, torch.float32) if kind == "awq" else of_gptq(
        parts, torch.float32, zeros_less_one=IN_INT32[kind][0] == "gptq"
    )  # fmt: skip
    step = parts["scales"].float().T.repeat_interleave(BLOCK, 1)
    assert after.shape == before.shape
    assert bool(((after - before).abs() <= 1.01 * step).all())
