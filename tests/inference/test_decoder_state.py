"""How a model is run while it generates, and that nothing of it stays behind."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from loraft.adapters.inject import add_lora_layers
from loraft.inference.decoder_state import DecoderState, ordinary_attention, padded
from loraft.inference.prompt_limits import learned_positions
from loraft.kernels.packed_attention import ROWS
from loraft.models.modules import wrapped_model
from tests.tiny import TELLING, TINY_MODEL_TYPES, mostly_slow, tiny_model

ROW = [5, 9, 200, 31, 7, 40, 11, 8, 77, 300, 2, 19]


def adapted(model: PreTrainedModel, **options: object) -> nn.Module:
    """The model with an adapter whose update is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **options)
        return add_lora_layers(model, config)


@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, *TELLING))
def test_c36_reading_in_pieces_is_reading_at_once(model_type: str) -> None:
    model = tiny_model(model_type)
    with torch.no_grad():
        expected = model(torch.tensor([ROW])).logits[0, -1]
    context = DecoderState(model)
    for piece in (ROW[:5], ROW[5:9], ROW[9:11]):
        context.read(torch.tensor([piece]))
    logits = context.read(torch.tensor([ROW[11:]]))
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=1e-5)
    again = DecoderState(model, use_cache=False)
    again.read(torch.tensor([ROW[:5]]))
    torch.testing.assert_close(again.read(torch.tensor([ROW[5:]]))[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_c35_a_padded_row_reads_as_it_does_alone(model_type: str, use_cache: bool) -> None:
    model = tiny_model(model_type)
    rows = [ROW, ROW[:3], ROW[2:9]]
    ids, mask = padded(rows, model.device)
    context = DecoderState(model, use_cache=use_cache)
    together = [context.read(ids, mask), context.read(torch.tensor([[1], [2], [3]]))]
    context.keep([2, 1])
    together.append(context.read(torch.tensor([[3], [2]])))
    for row, token, places in ((0, 1, (0, 0, None)), (1, 2, (1, 1, 1)), (2, 3, (2, 2, 0))):
        alone = DecoderState(model)
        for step, (ids_alone, place) in enumerate(zip((rows[row], [token], [token]), places, strict=True)):
            expected = alone.read(torch.tensor([ids_alone]))[0]
            if place is not None:
                torch.testing.assert_close(together[step][place], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "gpt2", "bloom", "cohere2"])
def test_a_context_that_went_back_reads_on_as_one_that_never_was_there(model_type: str) -> None:
    """Sliding windows of 8 tokens among them: what has left the window comes back into it."""
    model, other = tiny_model(model_type), [30, 31, 32]
    context = DecoderState(model, rewinds=True)
    context.read(torch.tensor([ROW]))
    for length in (10, 2, 0):
        context.rewind(length)
        assert (context.length, context.first_row) == (length, ROW[:length])
        got = context.read(torch.tensor([other + ROW]))
        fresh = DecoderState(model)
        expected = fresh.read(torch.tensor([ROW[:length] + other + ROW]))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        context.rewind(length)
        context.read(torch.tensor([ROW[length:]]))


def test_rows_of_one_length_have_no_mask() -> None:
    ids, mask = padded([[1, 2], [3, 4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2], [3, 4]]
    assert mask is None


def test_padding_is_on_the_left() -> None:
    ids, mask = padded([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_packed_attention_and_training_mode_come_back(model_type: str) -> None:
    model = tiny_model(model_type)
    model.set_attn_implementation(ROWS)
    model.train()
    model.get_input_embeddings().eval()
    before = [module.training for module in model.modules()]
    with ordinary_attention(model):
        assert model.config._attn_implementation == ("eager" if model_type == "gemma2" else "sdpa")
        assert not any(module.training for module in model.modules())
    assert model.config._attn_implementation == ROWS
    assert [module.training for module in model.modules()] == before


def test_the_model_comes_back_from_an_error_too() -> None:
    model = tiny_model("llama").train()
    model.set_attn_implementation(ROWS)
    with pytest.raises(IndexError), ordinary_attention(model):
        DecoderState(model).read(torch.tensor([[100_000]]))
    assert model.training
    assert model.config._attn_implementation == ROWS


def test_a_chosen_attention_stays() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with ordinary_attention(model):
        assert model.config._attn_implementation == "eager"


def test_gradient_checkpointing_does_not_cost_the_cache() -> None:
    model = adapted(tiny_model("llama"))
    wrapped_model(model).activation_checkpointing_enable()
    wrapped_model(model).enable_input_require_grads()
    model.train()
    context = DecoderState(model)
    with ordinary_attention(model):
        context.read(torch.tensor([ROW]))
    assert context._cache is not None
    assert context._cache.get_seq_length() == len(ROW)
    assert wrapped_model(model).is_activation_checkpointing


def test_training_goes_on_as_if_nothing_had_been_read() -> None:
    """The same gradients, also where reading and training share one autocast and its casts."""
    ids = torch.tensor([ROW])
    gradients = []
    for reads in (False, True):
        model = adapted(tiny_model("llama").bfloat16()).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if reads:
                with ordinary_attention(model):
                    DecoderState(model).read(ids)
            model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert gradients[0]
    for expected, got in zip(*gradients, strict=True):
        assert torch.equal(expected, got)


def test_an_adapter_computes_in_the_dtype_of_its_base() -> None:
    model = adapted(tiny_model("llama").bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(torch.tensor([ROW])).logits[:, -1].float()
    got = DecoderState(model).read(torch.tensor([ROW]))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_learned_positions_are_told_from_the_model(model_type: str) -> None:
    expected = 512 if model_type in ("gpt2", "gpt_bigcode", "opt") else None
    assert learned_positions(tiny_model(model_type)) == expected


def test_a_trained_vocabulary_is_no_position_table() -> None:
    model = adapted(tiny_model("llama", max_position_embeddings=320), modules_to_save=["embed_tokens"])
    assert learned_positions(model) is None
