"""What a CPU reads of 4-bit weights is what was quantized, whatever the length of a row."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.nn.modules import Linear4bit

from loraft.kernels.cpu_dequantize import read_blocks_across_rows


@pytest.mark.parametrize("shape", [(64, 48), (3, 64), (2, 96), (5, 32), (32, 128)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_weight_is_that_of_the_plain_arithmetic(shape: tuple[int, int], kind: str) -> None:
    read_blocks_across_rows()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind)
    plain = _dequantize_4bit_compute(codes.reshape(-1), state.absmax, state.code, 64, shape, torch.float32)
    torch.testing.assert_close(bnb.dequantize_4bit(codes, state), plain, rtol=0, atol=0)
    assert (plain - weight).abs().mean() < 0.1 * weight.abs().mean() * 2


@pytest.mark.parametrize("inputs", [48, 64])
def test_products_and_gradients_are_those_of_the_weight(inputs: int) -> None:
    read_blocks_across_rows()
    layer = Linear4bit(inputs, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False
    x = torch.randn(3, inputs, requires_grad=True, generator=torch.Generator().manual_seed(0))
    layer(x).sum().backward()
    weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(layer(x), x @ weight.T)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, inputs))
