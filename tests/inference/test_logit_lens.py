"""The logit lens runs a model's own end on each layer's output, whatever that end is."""

from __future__ import annotations

import pytest
import torch

from loraft.inference.decoder_state import DecoderState
from loraft.inference.tracer import LogitLens
from loraft.models.registry import FAMILIES
from tests.inference.test_decoder_state import ROW, adapted
from tests.tiny import TELLING, TINY_MODEL_TYPES, mostly_slow, tiny_model

ENCODER_DECODERS = ("t5", "bart", "marian")


@pytest.mark.parametrize("model_type", mostly_slow([*TINY_MODEL_TYPES, *ENCODER_DECODERS], *TELLING))
def test_the_last_layers_words_are_the_models(model_type: str) -> None:
    """Final norm, projection, head, scales and soft caps are all in: the last state gives the model's logits."""
    model = tiny_model(model_type)
    context = DecoderState(model)
    lens = LogitLens(model)
    with lens.listening():
        for ids in (ROW[:6], ROW[6:7]):
            begun, _ = context.begin([ids]) if context.length == 0 else (torch.tensor([ids]), None)
            own = context.read(begun)[0]
            layers = len(model.get_submodule(FAMILIES[model_type].layers_path))
            assert len(lens._states) == layers
            torch.testing.assert_close(lens.through_the_end(torch.stack(lens._states))[-1], own, atol=1e-5, rtol=1e-5)
            said = lens.logits(own)
            assert said.shape == (layers, own.shape[0])
            assert torch.equal(said[-1], own)
            assert said.argmax(-1)[-1] == own.argmax()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_an_earlier_layers_words_are_those_of_the_shorter_model(model_type: str) -> None:
    """A model whose upper layers add nothing says what the layer below them says."""
    model = tiny_model(model_type)
    lens = LogitLens(model)
    with lens.listening():
        own = DecoderState(model).read(torch.tensor([ROW]))[0]
        said = lens.logits(own)
    layers = model.get_submodule("transformer.h" if model_type == "gpt2" else "model.layers")
    del layers[1:]
    model.config.num_hidden_layers = 1
    model.config.layer_types = getattr(model.config, "layer_types", None) and model.config.layer_types[:1]
    with torch.no_grad():
        shorter = model(torch.tensor([ROW]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(said[0], shorter, atol=1e-5, rtol=1e-5)


def test_listening_changes_nothing_and_leaves_nothing() -> None:
    model = adapted(tiny_model("llama").bfloat16())
    base = model.get_base_model()
    expected = DecoderState(model).read(torch.tensor([ROW]))
    lens = LogitLens(base)
    with lens.listening():
        context = DecoderState(model)
        own = context.read(torch.tensor([ROW]))
        lens.logits(own[0])
        after = context.read(torch.tensor([[7]]))
    assert torch.equal(own, expected)
    again = DecoderState(model)
    again.read(torch.tensor([ROW]))
    assert torch.equal(again.read(torch.tensor([[7]])), after)
    assert not any(module._forward_hooks for module in model.modules())
