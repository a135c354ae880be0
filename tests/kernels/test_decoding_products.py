"""Faster products, with the same results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from loraft.inference.decoder_state import DecoderState, ordinary_attention
from loraft.inference.requests import ModelRequest
from loraft.inference.session import open_session
from loraft.kernels import decoding_products
from loraft.kernels.decoding_products import Form, patch_decode_linears
from loraft.models.registry import FAMILIES
from tests.inference.test_decoder_state import ROW, adapted
from tests.tiny import TINY_MODEL_TYPES, mostly_slow, tiny_model

# One unit in the last place of bfloat16, for machines whose two kinds of products add in another order.
ONE_ULP = {"atol": 1e-2, "rtol": 2**-7}


LAID_OUT = ("laid_out", "laid_out_for_several")
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ROOM = 1 << 30


@pytest.fixture(autouse=True, params=["laid_out", "laid_out_for_several", "as_it_lies", "usual"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Each form, whichever is fastest on this machine, for weights as small as those of tiny models too."""
    form: Form = request.param
    if form in LAID_OUT and decoding_products._laid_out(torch.ones(8, 8)) is None:
        pytest.skip("this torch lays no weights out")
    monkeypatch.setattr(decoding_products, "fastest_form", lambda _: form)
    monkeypatch.setattr(decoding_products, "SMALL", 0)
    return form


def read_one_by_one(model: nn.Module) -> torch.Tensor:
    context = DecoderState(model)
    return torch.cat([context.read(torch.tensor([[token_id]])) for token_id in ROW])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (1, 1, 96), (1, 7, 96), (3, 1, 96)])
def test_a_product_is_the_usual_one(shape: tuple[int, ...], bias: bool) -> None:
    module = nn.Linear(96, 50, bias=bias).bfloat16()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), patch_decode_linears(module, torch.bfloat16, room=ROOM):
        product = module(inputs)
    assert product.shape == (*shape[:-1], 50)
    torch.testing.assert_close(product, linear(inputs, module.weight, module.bias), **ONE_ULP)


def test_a_bias_in_float32_is_added_as_autocast_casts_it() -> None:
    """As an adapter trains it."""
    module, generator = nn.Linear(96, 50).bfloat16(), torch.Generator().manual_seed(0)
    module.bias.data = torch.randn(50, generator=generator)
    inputs = torch.zeros(3, 96, dtype=torch.bfloat16)
    inputs[:, 0] = 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        usual = module(inputs)
        with patch_decode_linears(module, torch.bfloat16, room=ROOM):
            assert torch.equal(module(inputs), usual)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "t5"])
def test_a_model_says_the_same(model_type: str) -> None:
    model = tiny_model(model_type).bfloat16()
    context, fast = DecoderState(model), DecoderState(model)
    start, _ = context.begin([ROW])
    fast.begin([ROW])
    expected = context.read(start)
    with patch_decode_linears(model, torch.bfloat16, same_input=SAME_INPUT, room=ROOM):
        torch.testing.assert_close(fast.read(start), expected, atol=3e-2, rtol=3e-2)


def test_an_adapter_is_cast_once_to_what_autocast_casts_it_to() -> None:
    model = adapted(tiny_model("llama").bfloat16())
    expected = read_one_by_one(model)
    with ordinary_attention(model):
        torch.testing.assert_close(read_one_by_one(model), expected, atol=3e-2, rtol=3e-2)
    assert any(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_nothing_stays_behind(chosen: Form) -> None:
    """In float32 only what is laid out computes otherwise."""
    for dtype, gains in ((torch.float32, LAID_OUT), (torch.bfloat16, (*LAID_OUT, "as_it_lies"))):
        model = tiny_model("llama").to(dtype)
        with patch_decode_linears(model, dtype, room=ROOM):
            assert ("forward" in vars(model.lm_head)) is (chosen in gains)
        assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, "llama", "phi3"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", ["laid_out"], indirect=True)
def test_what_reads_one_input_together_gives_what_each_gives(model_type: str, dtype: torch.dtype) -> None:
    model = adapted(tiny_model(model_type).to(dtype), fan_in_fan_out=model_type == "gpt2")
    ids = torch.tensor([ROW[:4], ROW[4:8]])
    answers = []
    for same_input in ((), FAMILIES[model_type].same_input):
        with patch_decode_linears(model, dtype, same_input=same_input, room=ROOM):
            context = DecoderState(model)
            answers.append(torch.cat([context.read(ids), context.read(ids[:, :1])]))
    share = 1e-5 if dtype == torch.float32 else 3e-2
    assert (answers[0] - answers[1]).abs().max() <= share * answers[0].abs().max()


def test_weights_are_laid_out_only_where_there_is_room_and_once(chosen: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept is taken again until a weight changes, even behind the back of its version."""
    model, made = tiny_model("llama"), list[int]()
    plain = decoding_products._laid_out
    monkeypatch.setattr(decoding_products, "_laid_out", lambda weight: made.append(len(weight)) or plain(weight))

    def read(room: int, *, keeps: bool) -> int:
        before = len(made)
        with patch_decode_linears(model, torch.float32, same_input=SAME_INPUT, room=room, keeps=keeps):
            logits = DecoderState(model).read(torch.tensor([ROW]))
        torch.testing.assert_close(logits, DecoderState(model).read(torch.tensor([ROW])), atol=1e-4, rtol=1e-4)
        return len(made) - before

    # Of each layer q, k, v as one, and gate, up; the head reads one row.
    products = {"laid_out": 3 * 4 + 1, "laid_out_for_several": 3 * 4}.get(chosen, 0)
    assert [read(100, keeps=True), read(ROOM, keeps=False), read(ROOM, keeps=False)] == [0, products, products]
    assert [read(ROOM, keeps=True), read(ROOM, keeps=True)] == [products, 0]
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    layer.weight.data += 1  # type: ignore[operator]  # as peft folds adapters in
    assert read(ROOM, keeps=True) == (1 if products else 0)


def test_gradients_flow_as_ever() -> None:
    model = tiny_model("llama")
    model.requires_grad_(True)
    with patch_decode_linears(model, torch.float32, same_input=SAME_INPUT, room=ROOM):
        model(torch.tensor([ROW])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_in_16_bits_what_is_laid_out_gives_the_usual_bits(
    smollm2: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    if decoding_products.fastest_form(torch.bfloat16) not in LAID_OUT:
        pytest.skip("this CPU takes another form")
    model = open_session(ModelRequest(str(smollm2), dtype="bfloat16")).model
    ids = torch.randint(5, 40_000, (rows, 9), generator=torch.Generator().manual_seed(rows))
    plain, laid = DecoderState(model), DecoderState(model)
    for piece in (ids[:, :6], ids[:, 6:7], ids[:, 7:8]):
        expected = plain.read(piece)
        with patch_decode_linears(model, torch.bfloat16, same_input=SAME_INPUT, room=1 << 40):
            assert torch.equal(laid.read(piece), expected)


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
