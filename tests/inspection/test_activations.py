"""Residual streams and attention, reduced as they come: against figures by hand and transformers' own outputs."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraft.inspection.activations import head_attention, keys_in_sight, not_finite, watch_activations
from loraft.models.registry import FAMILIES
from tests.tiny import tiny_model

IDS = list(range(10, 34))
ANSWER = [3, 5, 6, 7, 8]


def test_a_head_by_hand() -> None:
    weights = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]])
    (head,) = head_attention(weights, keys_in_sight(3, 3, causal=True))
    second, third = math.log(2), -sum(p * math.log(p) for p in (0.2, 0.3, 0.5))
    assert head.entropy == pytest.approx((second + third) / 2)
    assert head.entropy_share == pytest.approx((1 + third / math.log(3)) / 2)
    assert head.distance == pytest.approx((0.5 * 1 + 0.2 * 2 + 0.3 * 1) / 2)
    assert head.distance_past_first == pytest.approx(0.3 * 1 / (0.5 + 0.3 + 0.5))
    assert head.first_token == pytest.approx((0.5 + 0.2) / 2)


def test_even_attention_has_the_greatest_entropy_and_one_key_the_least() -> None:
    sight = keys_in_sight(9, 9, causal=True)
    even = sight / sight.sum(1, keepdim=True)
    at_first = torch.zeros(9, 9)
    at_first[:, 0] = 1
    one, other = head_attention(torch.stack([even, at_first]), sight)
    assert one.entropy_share == pytest.approx(1)
    assert one.distance == pytest.approx(sum(range(1, 9)) / 2 / 8)
    assert (other.entropy, other.entropy_share, other.first_token) == (0, 0, 1)
    assert other.distance_past_first is None


def test_a_window_and_an_encoder_are_in_sight_as_they_are() -> None:
    assert keys_in_sight(4, 4, causal=True, window=2).sum(1).tolist() == [1, 2, 2, 2]
    assert keys_in_sight(3, 5, causal=False).all()
    (across,) = head_attention(torch.full((1, 2, 4), 0.25), keys_in_sight(2, 4, causal=False), crosses=True)
    assert (across.distance, across.distance_past_first) == (None, None)
    assert across.entropy == pytest.approx(math.log(4))
    assert head_attention(torch.ones(2, 1, 1), keys_in_sight(1, 1, causal=True)) == ()


def whole_outputs(model: Any, family: Any, **more: Any) -> Any:
    """What transformers keeps of a pass: every map and every hidden state."""
    model.set_attn_implementation("eager")
    read = {"decoder_input_ids": torch.tensor([ANSWER])} if family.encoder_path else {}
    with torch.inference_mode():
        return model.base_model(input_ids=torch.tensor([IDS]), **read, **more)


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "t5", "bert", *sorted(FAMILIES.keys() - {"llama", "gemma2", "t5", "bert"})]
)
def test_every_family_gives_what_transformers_keeps(model_type: str) -> None:
    model, family = tiny_model(model_type).eval(), FAMILIES[model_type]
    watch = watch_activations(model, family, IDS, ANSWER)
    kept = whole_outputs(model, family, output_attentions=True, output_hidden_states=True)
    for stack in watch.stacks:
        of = f"{stack.name}_" if family.encoder_path else ""
        maps, states = kept[f"{of}attentions"], kept[f"{of}hidden_states"]
        layers = [layer for layer in watch.layers if layer.stack == stack.name]
        sight = keys_in_sight(stack.tokens, stack.tokens, causal=stack.causal)
        assert [layer.index for layer in layers] == list(range(len(layers)))
        assert stack.norm == pytest.approx(states[0][0, 1:].float().norm(dim=1).mean().item(), rel=1e-4)
        for number, layer in enumerate(layers):
            if number + 1 < len(layers):  # behind the last one transformers gives what the last norm made of it
                assert layer.norm == pytest.approx(
                    states[number + 1][0, 1:].float().norm(dim=1).mean().item(), rel=1e-4
                )
            if number < len(maps) and family.model_type not in ("gemma2", "gemma3_text"):  # a window hides keys
                for head, expected in zip(layer.heads, head_attention(maps[number][0], sight), strict=True):
                    assert head.entropy == pytest.approx(expected.entropy, abs=1e-4)
                    assert head.first_token == pytest.approx(expected.first_token, abs=1e-4)
        if stack.name == "decoder" and family.encoder_path:
            crossed = keys_in_sight(len(ANSWER), len(IDS), causal=False)
            for layer, weights in zip(layers, kept["cross_attentions"], strict=True):
                expected = head_attention(weights[0], crossed, crosses=True)
                assert [head.entropy for head in layer.cross_heads] == pytest.approx(
                    [e.entropy for e in expected], abs=1e-4
                )


class LiveMaps(TorchDispatchMode):
    """Counts the bytes of the tensors of attention's shape that are alive, and keeps the greatest count."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.alive, self.most = tokens, weakref.WeakSet[Any](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() >= 3 and tensor.shape[-2:] == (self.tokens,) * 2:
                self.alive.add(tensor.untyped_storage())
                self.most = max(self.most, sum(storage.nbytes() for storage in self.alive))
        return made


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", ["llama", "bert", "deberta-v2"])
def test_no_more_than_one_map_is_held_however_many_layers_there_are(model_type: str) -> None:
    tokens, most = 40, []
    for layers in (1, 2, 6):
        model = tiny_model(model_type, num_hidden_layers=layers, layer_types=None).eval()
        with LiveMaps(tokens) as live:
            watch = watch_activations(model, FAMILIES[model_type], list(range(tokens)))
        assert len(watch.layers) == layers
        most.append(live.most)
    assert most[0] > 0
    assert most == [most[0]] * 3


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model("llama").eval()
    model.set_attn_implementation("sdpa")
    before = whole(model)
    watch_activations(model, FAMILIES["llama"], IDS)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(whole(model), before)


def whole(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits
    return logits


def test_one_token_has_no_attention_to_tell_and_nan_is_named() -> None:
    model = tiny_model("llama").eval()
    watch = watch_activations(model, FAMILIES["llama"], [7])
    assert [layer.heads for layer in watch.layers] == [()] * 3
    assert watch.layers[0].norm == watch.layers[0].first_norm
    assert not_finite(watch.layers) is None
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(math.nan)
    said = not_finite(watch_activations(model, FAMILIES["llama"], IDS).layers)
    assert said is not None
    assert "decoder layer 1" in said
