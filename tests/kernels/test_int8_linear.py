"""Products with int8 weights: by hand, against the dequantized weight, and each row for itself."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import nn
from torch.nn.functional import linear

from loraft.kernels.int8_linear import Int8Linear
from loraft.kernels.linear_weights import dequantized
from loraft.models.quantize import make_trainable


def in_8_bits(dtype: torch.dtype = torch.float32) -> Int8Linear:
    torch.manual_seed(0)
    layer = Linear8bitLt(16, 8, has_fp16_weights=False, threshold=6.0)  # type: ignore[no-untyped-call]
    model = nn.Sequential(layer.to("cpu"))  # which quantizes it
    make_trainable(model, dtype)
    made = model[0]
    assert isinstance(made, Int8Linear)
    return made


def test_a_code_is_a_share_of_the_largest_in_its_row() -> None:
    codes = torch.tensor([[127, -64], [0, 1]], dtype=torch.int8)
    expected = torch.tensor([[2.0, -128 / 127], [0.0, 0.5 / 127]])
    torch.testing.assert_close(dequantized(codes, torch.tensor([2.0, 0.5]), torch.float32), expected)
    assert codes.tolist() == [[127, -64], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_the_dequantized_weight_in_training_and_out_of_it(dtype: torch.dtype) -> None:
    """Bitsandbytes itself quantizes what is multiplied too, out of training alone on a CPU."""
    layer = in_8_bits(dtype)
    weight = dequantized(layer.weight.data, layer.scales, dtype)
    x = torch.randn(3, 5, 16).to(dtype).requires_grad_()
    expected = linear(x, weight, layer.bias.to(dtype))
    for training in (True, False, True):
        output = layer.train(training)(x)
        assert torch.equal(output, expected)
        assert output.dtype == dtype
        (found,) = torch.autograd.grad(output.sum(), x)
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), x, retain_graph=True)[0])


def test_c11_a_row_does_not_depend_on_the_outliers_of_another() -> None:
    """With bitsandbytes' own products it does: the columns with outliers are those of the whole batch."""
    layer, x = in_8_bits(), torch.randn(4, 16)
    before = layer(x)
    x[0] *= 100
    assert torch.equal(layer(x)[1:], before[1:])


def test_products_have_the_dtype_that_is_asked_for_and_give_that_of_autocast() -> None:
    layer, x = in_8_bits(torch.float32), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, layer(x).bfloat16())
