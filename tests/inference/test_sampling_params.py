"""The rules of a caller and of a saved generation_config."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from loraft.errors import ConfigError
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import GREEDY, SamplingParams, unheeded_defaults


def test_rules_name_every_value_out_of_bounds() -> None:
    with pytest.raises(ConfigError) as refused:
        SamplingParams(float("nan"), top_k=0, top_p=1.5, min_p=-0.1, repetition_penalty=0, num_beams=0)
    keys = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams"]
    assert [problem.key for problem in refused.value.problems] == keys


@pytest.mark.parametrize(
    ("defaults", "asked", "expected"),
    [
        (None, {}, GREEDY),
        ({}, {}, GREEDY),
        ({"temperature": 0.6, "top_p": 0.9}, {}, GREEDY),
        ({}, {"temperature": 0.7, "top_p": 0.8}, SamplingParams(0.7, None, 0.8)),
        ({"do_sample": True}, {}, SamplingParams(1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {}, SamplingParams(0.6, 20, 0.9)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0}, {"top_p": 0.5}, SamplingParams(0.6, None, 0.5)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0}, SamplingParams(0.0, None, 0.9)),
        ({"do_sample": True, "min_p": 0.1}, {}, SamplingParams(1.0, min_p=0.1)),
        ({"do_sample": True, "min_p": 0.1}, {"min_p": 0.2}, SamplingParams(1.0, min_p=0.2)),
        ({"min_p": 0.1, "repetition_penalty": 1.2}, {}, SamplingParams(repetition_penalty=1.2)),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.0}, GREEDY),
        (
            {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
            {},
            SamplingParams(num_beams=4, length_penalty=2.0, early_stopping=True),
        ),
        ({"num_beams": 4}, {"num_beams": 1}, GREEDY),
        ({"num_beams": 4}, {"temperature": 0.5}, SamplingParams(0.5)),
        ({"do_sample": True, "num_beams": 4}, {}, SamplingParams(1.0)),
        ({"do_sample": True}, {"num_beams": 2}, SamplingParams(num_beams=2)),
        (
            {"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [5], "forced_bos_token_id": 3},
            {},
            SamplingParams(never=(7, 5), first=3),
        ),
    ],
)
def test_rules_of_a_generation_config(
    defaults: dict[str, object] | None, asked: dict[str, float], expected: SamplingParams
) -> None:
    config = None if defaults is None else GenerationConfig(**defaults)
    assert SamplingParams.of(config, GenerationRequest(**asked)) == expected  # type: ignore[arg-type]


def test_what_a_generation_config_asks_for_in_vain_is_named() -> None:
    asks = GenerationConfig(no_repeat_ngram_size=3, min_length=56, length_penalty=2.0, bad_words_ids=[[7]])
    assert unheeded_defaults(asks) == ("min_length=56", "no_repeat_ngram_size=3")
    assert unheeded_defaults(GenerationConfig(bad_words_ids=[[7], [8, 9]])) == ("bad_words_ids=[[7], [8, 9]]",)
    assert unheeded_defaults(GenerationConfig(do_sample=True, top_k=5)) == unheeded_defaults(None) == ()
