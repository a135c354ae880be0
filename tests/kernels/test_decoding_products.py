"""Faster products, with the same results."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from loraft.inference.decoder_state import DecoderState, ordinary_attention
from loraft.kernels import decoding
from loraft.kernels.decoding import patch_decode_linears
from tests.inference.test_decoder_state import ROW, adapted
from tests.tiny import tiny_model

# One unit in the last place of bfloat16, for machines whose two kinds of products add in another order.
ONE_ULP = {"atol": 1e-2, "rtol": 2**-7}


@pytest.fixture(autouse=True, params=[True, False], ids=["as-it-lies", "usual"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each form, whichever is faster on this machine."""
    monkeypatch.setattr(decoding, "as_it_lies_is_faster", lambda: request.param)
    return bool(request.param)


def read_one_by_one(model: nn.Module) -> torch.Tensor:
    context = DecoderState(model)
    return torch.cat([context.read(torch.tensor([[token_id]])) for token_id in ROW])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (1, 1, 96), (1, 7, 96), (3, 1, 96)])
def test_a_product_is_the_usual_one(shape: tuple[int, ...], bias: bool) -> None:
    module = nn.Linear(96, 50, bias=bias).bfloat16()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), patch_decode_linears(module, torch.bfloat16):
        product = module(inputs)
    assert product.shape == (*shape[:-1], 50)
    torch.testing.assert_close(product, linear(inputs, module.weight, module.bias), **ONE_ULP)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "t5"])
def test_a_model_says_the_same(model_type: str) -> None:
    model = tiny_model(model_type).bfloat16()
    context, fast = DecoderState(model), DecoderState(model)
    start, _ = context.begin([ROW])
    fast.begin([ROW])
    expected = context.read(start)
    with patch_decode_linears(model, torch.bfloat16):
        torch.testing.assert_close(fast.read(start), expected, atol=3e-2, rtol=3e-2)


def test_an_adapter_is_cast_once_to_what_autocast_casts_it_to() -> None:
    model = adapted(tiny_model("llama").bfloat16())
    expected = read_one_by_one(model)
    with ordinary_attention(model):
        torch.testing.assert_close(read_one_by_one(model), expected, atol=3e-2, rtol=3e-2)
    assert any(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_nothing_stays_behind_and_float32_is_left_alone(chosen: bool) -> None:
    model = tiny_model("llama")
    with patch_decode_linears(model, torch.float32):
        assert not any("forward" in vars(module) for module in model.modules())
    model = model.bfloat16()
    with patch_decode_linears(model, torch.bfloat16):
        assert ("forward" in vars(model.lm_head)) is chosen
    assert not any("forward" in vars(module) for module in model.modules())


def test_answers_that_overlap_do_not_disturb_one_another() -> None:
    """Closed in either order, and one inside the other."""
    model = tiny_model("llama").bfloat16()
    expected = read_one_by_one(model)
    for order in ((0, 1), (1, 0)):
        open_ones = [ordinary_attention(model), ordinary_attention(model)]
        for each in open_ones:
            each.__enter__()
        for place in order:
            torch.testing.assert_close(read_one_by_one(model), expected, atol=3e-2, rtol=3e-2)
            open_ones[place].__exit__(None, None, None)
        assert not any("forward" in vars(module) for module in model.modules())


def test_training_within_an_answer_sees_later_weights() -> None:
    """A weight that changed between two answers is read anew for the second."""
    model = adapted(tiny_model("llama").bfloat16())
    with ordinary_attention(model):
        before = read_one_by_one(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    with ordinary_attention(model):
        after = read_one_by_one(model)
    assert not torch.equal(before, after)
