"""Beam search: the same answers as transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from loraft.errors import ConfigError
from loraft.inference.engine import complete_batch, stream
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import SamplingParams
from tests.inference.test_engine import TOKENIZER, prompts
from tests.tiny import mostly_slow, tiny_model

STOPS = list(range(270, 300))


def of_transformers(model: PreTrainedModel, prompt: list[int], stops: list[int] | None, **settings: Any) -> list[int]:
    """Its answer, without the stop id."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    whole = model.generate(ids, attention_mask=mask, do_sample=False, eos_token_id=stops, pad_token_id=0, **settings)
    answer: list[int] = whole[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
    return answer[:-1] if stops and answer[-1] in stops else answer


@pytest.mark.slow
@pytest.mark.parametrize("model_type", mostly_slow(["llama", "gpt2", "bloom", "t5", "bart", "marian"], "llama"))
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0},
        {"num_beams": 4, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_beams_are_transformers_beams(model_type: str, settings: dict[str, Any]) -> None:
    """Greedy beams, float32, token for token; with and without stop ids, so that some end early and some do not."""
    model = tiny_model(model_type)
    rules = SamplingParams(**settings)
    for stops in (STOPS, []):
        for prompt in prompts(5):
            ours = stream(model, TOKENIZER, prompt, rules=rules, max_new_tokens=12, stop_ids=stops).completion
            assert list(ours.token_ids) == of_transformers(model, prompt, stops or None, max_new_tokens=12, **settings)


def test_an_answer_that_must_begin_with_a_token_does() -> None:
    model = tiny_model("bart")
    rules = SamplingParams(num_beams=3, first=41, never=(15, 230))
    for prompt in prompts(3):
        ours = stream(model, TOKENIZER, prompt, rules=rules, max_new_tokens=8, stop_ids=STOPS).completion.token_ids
        expected = of_transformers(
            model, prompt, STOPS, max_new_tokens=8, num_beams=3, forced_bos_token_id=41, bad_words_ids=[[15], [230]]
        )
        assert list(ours) == expected
        assert ours[0] == 41
        assert not {15, 230} & set(ours)


def test_a_beam_ends_at_a_stop_text_as_in_transformers() -> None:
    """The text is that in front of it; of tokens, those that spelled it are there."""
    model, prompt, rules = tiny_model("llama"), [5, 6, 7], SamplingParams(num_beams=3)
    free = stream(model, TOKENIZER, prompt, rules=rules, max_new_tokens=12, stop_ids=()).completion
    text = free.completion[4:6]
    stopped = stream(
        model, TOKENIZER, prompt, rules=rules, max_new_tokens=12, stop_ids=(), stop_texts=[text]
    ).completion
    settings = {"max_new_tokens": 12, "num_beams": 3, "stop_strings": [text], "tokenizer": TOKENIZER}
    assert list(stopped.token_ids) == of_transformers(model, prompt, None, **settings)
    assert text not in stopped.completion
    assert stopped.finish_reason == "stop"


def test_beams_find_a_likelier_answer_than_greed() -> None:
    model = tiny_model("llama")
    better = 0
    for prompt in prompts(8):
        sums = [
            sum(stream(model, TOKENIZER, prompt, rules=SamplingParams(num_beams=n), max_new_tokens=8, stop_ids=())
                .completion.logprobs)
            for n in (1, 5)
        ]  # fmt: skip
        better += sums[1] > sums[0] + 1e-4
    assert better >= 4


def test_logprobs_of_beams_are_the_models_own() -> None:
    model, prompt = tiny_model("gpt2"), [5, 6, 7]
    rules = SamplingParams(num_beams=3, repetition_penalty=1.5)
    answered = stream(model, TOKENIZER, prompt, rules=rules, max_new_tokens=6, stop_ids=()).completion
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(answered.token_ids)])).logits[0].log_softmax(-1)
    expected = [logits[2 + i, token_id].item() for i, token_id in enumerate(answered.token_ids)]
    assert answered.logprobs == pytest.approx(expected, abs=1e-4)
    assert answered.prefill_ms > 0


def test_beams_of_a_batch_are_those_of_each_row() -> None:
    model, rules = tiny_model("llama"), SamplingParams(num_beams=3)
    rows = prompts(5)
    together = complete_batch(model, TOKENIZER, rows, rules=rules, max_new_tokens=8, stop_ids=STOPS)
    for row, answer in zip(rows, together, strict=True):
        alone = stream(model, TOKENIZER, row, rules=rules, max_new_tokens=8, stop_ids=STOPS).completion
        assert answer.token_ids == alone.token_ids


def test_beams_draw_nothing() -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        SamplingParams.of(None, GenerationRequest(num_beams=2, temperature=0.5))
