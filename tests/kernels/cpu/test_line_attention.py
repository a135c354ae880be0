"""Attention over padded lines against torch's, values and gradients, alone and in whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from loraft.kernels.cpu import line_attention
from loraft.kernels.cpu.dropout import drawn
from loraft.kernels.cpu.line_attention import LINES, attend_by_lines, lines_attention
from loraft.kernels.packed_attention import PRODUCTS_UP_TO
from tests.tiny import TELLING, TINY_MODEL_TYPES, TINY_OTHERS, mostly_slow, tiny_model
from tests.zoo.models import build

LENGTHS = torch.tensor([7, 4])
PADDED = (torch.arange(7) < LENGTHS[:, None])[:, None, None].expand(2, 1, 7, 7)
BIAS = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(3))


class Layer(nn.Module):
    """What transformers' function asks a layer for."""

    def __init__(self, groups: int, *, causal: bool) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, causal


def inputs(heads: int = 4, time: int = 7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((2, 4, time, 8), (2, heads, time, 8), (2, heads, time, 8))
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def results(attention: Any, layer: Layer, mask: Tensor | None, bias: Tensor | None, heads: int) -> list[Tensor]:
    given = inputs(heads)
    bias = None if bias is None else bias.clone().requires_grad_()
    out = attention(layer, *given, mask, position_bias=bias)[0]
    rows = torch.arange(7) < LENGTHS[:, None] if mask is not None else torch.ones(2, 7, dtype=torch.bool)
    out[rows].square().sum().backward()  # what stands at padding is read by nobody
    return [out[rows], *(each.grad for each in (*given, *(() if bias is None else (bias,))))]


@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
@pytest.mark.parametrize("mask", [None, PADDED, PADDED & torch.ones(7, 7).tril().bool()], ids=["all", "rows", "causal"])
@pytest.mark.parametrize(("groups", "causal"), [(1, False), (1, True), (2, True)])
def test_it_is_scaled_dot_product_attention(
    groups: int, causal: bool, mask: Tensor | None, bias: Tensor | None
) -> None:
    layer = Layer(groups, causal=causal)
    expected = results(sdpa_attention_forward, layer, mask, bias, 4 // groups)
    found = results(lines_attention, layer, mask, bias, 4 // groups)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("groups", [1, 2])
def test_dropout_is_that_of_the_weights(groups: int) -> None:
    query, key, value = given = inputs(4 // groups)
    torch.manual_seed(5)
    out, _ = lines_attention(Layer(groups, causal=False), *given, PADDED, dropout=0.3)
    found = torch.autograd.grad(out.square().sum(), given)
    torch.manual_seed(5)
    k, v = repeat_kv(key, groups), repeat_kv(value, groups)
    weights = (query @ k.mT / 8**0.5).masked_fill(~PADDED, float("-inf")).softmax(-1)
    kept, factor = drawn(weights.flatten(0, 1), 0.3)
    expected = ((weights * kept.view_as(weights) * factor) @ v).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), given))


def test_long_rows_without_dropout_and_what_is_not_trained_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        line_attention, "sdpa_attention_forward", lambda _, query, *__, **___: seen.append(query.shape[2])
    )
    layer, longer = Layer(1, causal=False), PRODUCTS_UP_TO[torch.float32] + 1
    lines_attention(layer, *inputs(), None)
    lines_attention(layer, *inputs(time=longer), None)
    lines_attention(layer, *(each.detach() for each in inputs()), None)
    lines_attention(layer, *inputs(time=longer), None, dropout=0.1)
    assert seen == [longer, 7]


def loss_and_gradients(model: PreTrainedModel) -> list[Tensor]:
    """Of two rows, the second one padded on the right; what is predicted at padding counts for nothing."""
    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **_decoded(model, ids)).logits
    logits[mask.bool()].float().square().mean().backward()
    return [logits[mask.bool()], *(each.grad for each in model.parameters() if each.grad is not None)]


def _decoded(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("model_type", mostly_slow((*TINY_MODEL_TYPES, *TINY_OTHERS), *TELLING))
def test_every_family_trains_the_same(model_type: str) -> None:
    model = tiny_model(model_type)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = loss_and_gradients(model)
    attend_by_lines(model)
    for ours, theirs in zip(loss_and_gradients(model), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, "the order of float32 sums through three layers"


def test_a_model_that_attends_in_its_own_code_or_as_it_was_asked_to_is_left_alone() -> None:
    own, asked, taken = tiny_model("bloom"), tiny_model("bert"), tiny_model("bert")
    asked.set_attn_implementation("eager")
    assert [attend_by_lines(model) for model in (own, asked, taken)] == [False, False, True]
    assert [model.config._attn_implementation for model in (own, asked, taken)][1:] == ["eager", LINES]


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_a_model_that_does_more_where_it_attends_as_torch_does_is_left_alone(model_type: str) -> None:
    """It hides what its indexer left out in the mask of that implementation alone."""
    model = build(model_type, "causal")
    model.set_attn_implementation("sdpa")
    for module in model.modules():
        if hasattr(module, "index_topk"):
            module.index_topk = 4  # of nine tokens
    expected = loss_and_gradients(model)
    attend_by_lines(model)
    torch.testing.assert_close(loss_and_gradients(model), expected)
