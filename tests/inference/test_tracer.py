"""Traces: what is told is so, and telling it changes nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from loraft.errors import ConfigError
from loraft.inference.completion import Completion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import stream
from loraft.inference.sampling import GREEDY, SamplingParams
from loraft.inference.tracer import Trace, Tracer
from loraft.models.registry import FAMILIES
from loraft.tokenization.boundaries import Pieces
from tests.inference.test_decoder_state import adapted
from tests.inference.test_engine import TOKENIZER, prompts
from tests.tiny import tiny_model

ALL_RULES = SamplingParams(1.2, top_k=30, top_p=0.8, min_p=0.05, repetition_penalty=1.3, never=(9,))
SOME = ("llama", "gemma2", "gpt2", "bloom", "t5", "bart", "marian")


def traced(
    model: torch.nn.Module, prompt: list[int], rules: SamplingParams = GREEDY, *, layers: bool = False, **options: Any
) -> tuple[Trace, Completion]:
    tracer = Tracer(model, TOKENIZER, layers=layers)
    settings = {"max_new_tokens": 8, "stop_ids": (), "seed": 0} | options
    completion = stream(model, TOKENIZER, prompt, rules=rules, tracer=tracer, **settings).completion
    return tracer.trace, completion


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", SOME)
@pytest.mark.parametrize("rules", [GREEDY, ALL_RULES, SamplingParams(first=41)], ids=["greedy", "sampled", "forced"])
def test_a_traced_answer_is_the_untraced_one(model_type: str, rules: SamplingParams) -> None:
    model = tiny_model(model_type)
    for prompt in prompts(3):
        for use_cache in (True, False):
            options = {"max_new_tokens": 8, "stop_ids": range(310, 320), "seed": 3}
            contexts = [DecoderState(model, use_cache=use_cache) for _ in range(2)]
            plain = stream(model, TOKENIZER, prompt, rules=rules, context=contexts[0], **options).completion  # type: ignore[arg-type]
            trace, completion = traced(model, prompt, rules, layers=True, context=contexts[1], **options)
            assert (completion.token_ids, completion.logprobs) == (plain.token_ids, plain.logprobs)
            taken = [step.taken.id for step in trace.steps]
            assert tuple(taken[: len(completion.token_ids)]) == completion.token_ids
            assert len(taken) - len(completion.token_ids) == (trace.ending.by == "stop_id")


@pytest.mark.slow
def test_a_traced_answer_in_sixteen_bits_with_an_adapter_is_the_untraced_one() -> None:
    for model_type in ("llama", "t5"):
        model = adapted(tiny_model(model_type).bfloat16())
        for prompt in prompts(3):
            plain = stream(model, TOKENIZER, prompt, rules=GREEDY, max_new_tokens=8, stop_ids=()).completion
            assert traced(model, prompt, layers=True)[1].token_ids == plain.token_ids


def test_the_prompt_is_fed_once_and_then_one_token_a_step() -> None:
    trace, completion = traced(tiny_model("llama"), [5, 6, 7])
    fed = [[piece.id for piece in step.fed] for step in trace.steps]
    assert fed == [[5, 6, 7], *([token_id] for token_id in completion.token_ids[:-1])]
    assert [step.cache_tokens for step in trace.steps] == [3, 4, 5, 6, 7, 8, 9, 10]
    # 3 layers · keys and values · 2 key-value heads of 8 numbers of 4 bytes
    assert [step.cache_bytes for step in trace.steps] == [n * 3 * 2 * 2 * 8 * 4 for n in range(3, 11)]


def test_without_a_cache_everything_is_fed_at_each_step() -> None:
    model = tiny_model("llama")
    trace, completion = traced(model, [5, 6, 7], context=DecoderState(model, use_cache=False))
    fed = [[piece.id for piece in step.fed] for step in trace.steps]
    assert fed == [[5, 6, 7, *completion.token_ids[:n]] for n in range(8)]
    assert {(step.cache_tokens, step.cache_bytes) for step in trace.steps} == {(0, 0)}
    assert not trace.use_cache


@pytest.mark.parametrize("rules", [GREEDY, ALL_RULES], ids=["greedy", "sampled"])
def test_probabilities_and_entropy_are_the_models(rules: SamplingParams) -> None:
    model = tiny_model("gpt2")
    trace, completion = traced(model, [5, 6, 7], rules)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, *completion.token_ids]])).logits[0, 2:-1]
    for step, row, logprob in zip(trace.steps, logits, completion.logprobs, strict=True):
        shares = row.softmax(-1)
        assert step.probability == pytest.approx(math.exp(logprob), abs=1e-5)
        assert [c.id for c in step.candidates[:5]] == shares.topk(5).indices.tolist()
        for candidate in step.candidates:
            assert candidate.probability == pytest.approx(shares[candidate.id].item(), abs=1e-5)
        assert step.entropy_bits == pytest.approx(-(shares * shares.log2()).sum().item(), abs=1e-4)


def test_the_entropy_of_equal_choices_is_the_logarithm_of_their_number() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    step = traced(model, [5])[0].steps[0]
    assert step.entropy_bits == pytest.approx(math.log2(320), abs=1e-5)


@pytest.mark.slow
def test_a_cut_is_told_with_the_rule_that_made_it() -> None:
    model, prompt = tiny_model("llama"), [5, 6, 7]
    likeliest = [c.id for c in traced(model, prompt)[0].steps[0].candidates]
    cases: list[tuple[SamplingParams, list[str | None]]] = [
        (SamplingParams(1.0, top_k=3), [None, None, None, "top_k", "top_k"]),
        (SamplingParams(1.0, top_p=1e-6), [None, "top_p", "top_p", "top_p", "top_p"]),
        (SamplingParams(1.0, min_p=1.0), [None, "min_p", "min_p", "min_p", "min_p"]),
        (SamplingParams(1.0, top_k=2, top_p=1e-6), [None, "top_p", "top_k", "top_k", "top_k"]),
        (SamplingParams(never=(likeliest[0],)), ["never", None, None, None, None]),
        (SamplingParams(first=likeliest[1]), ["first", None, "first", "first", "first"]),
        (SamplingParams(1.0), [None] * 5),
    ]
    for rules, cuts in cases:
        step = traced(model, prompt, rules)[0].steps[0]
        assert [candidate.cut_by for candidate in step.candidates[:5]] == cuts
        assert [candidate.probability_after == 0 for candidate in step.candidates[:5]] == [
            cut is not None for cut in cuts
        ]
        assert step.how == ("forced" if rules.first else "greedy" if rules.greedy else "sampled")


def test_what_was_taken_is_among_the_candidates_even_where_it_was_unlikely() -> None:
    trace, _ = traced(tiny_model("llama"), [5, 6, 7], SamplingParams(3.0), max_new_tokens=20)
    assert all(step.taken.id in {candidate.id for candidate in step.candidates} for step in trace.steps)
    assert any(len(step.candidates) == 6 for step in trace.steps)


def test_why_it_ended() -> None:
    model = tiny_model("llama")
    limited, free = traced(model, [5, 6, 7])
    assert (limited.ending.by, limited.ending.limit, limited.ended_with) == ("limit", 8, None)
    stop = free.token_ids[3]
    stopped, _ = traced(model, [5, 6, 7], stop_ids=(stop,))
    assert (stopped.ending.by, stopped.ending.token_id) == ("stop_id", stop)
    assert stopped.ended_with == Pieces(TOKENIZER).of(stop).text
    assert stopped.steps[-1].taken.id == stop
    text = free.completion[-2:]
    assert traced(model, [5, 6, 7], stop_texts=[text])[0].ending.text == text


@pytest.mark.slow
def test_each_layer_says_its_word_and_the_last_says_the_models() -> None:
    for model_type in SOME:
        model = tiny_model(model_type)
        layers = list(range(len(model.get_submodule(FAMILIES[model_type].layers_path))))
        trace, _ = traced(model, [5, 6, 7], layers=True)
        for step in trace.steps:
            assert [said.layer for said in step.layers] == layers
            last = step.layers[-1]
            assert (last.id, last.rank_of_taken) == (step.taken.id, 1)
            assert last.probability == pytest.approx(step.probability, abs=1e-6)


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_the_encoder_reads_once_and_the_decoder_begins_from_its_start_token(model_type: str) -> None:
    model = tiny_model(model_type)
    prompt = [5, 6, 7, 40]
    trace, completion = traced(model, prompt)
    assert trace.encoder is not None
    assert (trace.encoder.tokens, [piece.id for piece in trace.prompt]) == (4, prompt)
    assert trace.encoder.milliseconds > 0
    fed = [[piece.id for piece in step.fed] for step in trace.steps]
    start = model.generation_config.decoder_start_token_id
    assert fed == [[start], *([token_id] for token_id in completion.token_ids[:-1])]
    # 2 layers · keys and values · 32 numbers of 4 bytes, for what was said and for the 4 tokens of the source
    assert [step.cache_bytes for step in trace.steps] == [(n + 4) * 2 * 2 * 32 * 4 for n in range(1, 9)]
    assert [step.cache_tokens for step in trace.steps] == list(range(1, 9))


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_what_is_attended_is_what_generate_attends_to(model_type: str) -> None:
    model = tiny_model(model_type)
    model.set_attn_implementation("eager")
    prompt = [5, 6, 7, 40, 99, 12]
    trace, _ = traced(model, prompt)
    expected = cross_attentions(model, prompt)
    for step, layers in zip(trace.steps, expected, strict=True):
        weights = torch.stack(layers)[-2:, 0, :, -1].mean((0, 1))
        assert [look.position for look in step.attended] == weights.topk(3).indices.tolist()
        assert [look.weight for look in step.attended] == pytest.approx(weights.topk(3).values.tolist(), abs=1e-5)
        assert step.attended[0].text == Pieces(TOKENIZER).of(prompt[step.attended[0].position]).text


def cross_attentions(model: PreTrainedModel, prompt: list[int]) -> Any:
    ids = torch.tensor([prompt])
    settings = {"eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True, "output_attentions": True}
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **settings
    ).cross_attentions


def test_attention_comes_back_as_it_was() -> None:
    model = tiny_model("bart")
    traced(model, [5, 6])
    assert model.config._attn_implementation == "sdpa"


def test_a_trace_is_json() -> None:
    trace, _ = traced(tiny_model("t5"), [5, 6, 7], ALL_RULES, layers=True)
    document = json.loads(json.dumps(trace.as_dict()))
    assert document["steps"][0]["fed"] == [0]
    assert document["rules"]["top_k"] == 30
    assert document["steps"][0]["candidates"][0]["text"]


def test_beams_are_not_traced() -> None:
    with pytest.raises(ConfigError, match="cannot be traced"):
        traced(tiny_model("llama"), [5], SamplingParams(num_beams=2))


def test_a_trace_is_there_when_the_answer_has_ended() -> None:
    tracer = Tracer(tiny_model("llama"), TOKENIZER)
    with pytest.raises(ValueError, match="not ended"):
        _ = tracer.trace
