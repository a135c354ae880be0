"""A bias beside a weight in 4 bits: it is trained, and nothing that is computed with it casts it."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from torch.nn.functional import linear

from loraft.kernels.linear_weights import unpacked
from loraft.models.quantize import make_trainable


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_a_trained_bias_stays_float32_in_training_and_out_of_it(products: torch.dtype) -> None:
    """Bitsandbytes itself casts it to the dtype of the products, for good."""
    torch.manual_seed(0)
    layer = Linear4bit(64, 32, compute_dtype=products, quant_type="nf4")  # type: ignore[no-untyped-call]
    model = nn.Sequential(layer.to("cpu"))  # which quantizes it
    make_trainable(model, products)
    bias = layer.bias
    bias.data = torch.randn(32)
    x, before = torch.randn(3, 5, 64), bias.detach().clone()
    for training in (True, False, True):
        bias.grad = None
        output = model.train(training)(x)
        expected = linear(x.to(products), unpacked(layer), before.to(products)).float()
        torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
        output.sum().backward()
        assert layer.bias is bias
        torch.testing.assert_close(bias.detach(), before, rtol=0, atol=0)
        torch.testing.assert_close(bias.grad, torch.full((32,), 15.0))
