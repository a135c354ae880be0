"""Encoder–decoder models: the encoder reads once, the decoder begins from its start token."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from loraft.errors import DataError, ModelError
from loraft.inference.completion import Completion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import complete_batch, stream
from loraft.inference.prompt_limits import learned_positions
from loraft.inference.sampling import GREEDY, SamplingParams, saved_limit
from loraft.models.registry import TWO_STACKS
from tests.inference.test_engine import TOKENIZER, prompts
from tests.tiny import mostly_slow, tiny_model

TYPES = tuple(TWO_STACKS)
VARIED = SamplingParams(repetition_penalty=1.6)
"""Without a penalty tiny models say one token again and again."""


STOPS = tuple(range(310, 320))
"""Ids that tiny models happen to say, as ends of their answers."""


def of_transformers(model: PreTrainedModel, prompt: list[int], **options: object) -> list[int]:
    """What transformers generates behind the start token, padding and stop ids at the end left out."""
    ids = torch.tensor([prompt])
    settings: dict[str, object] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **(settings | options))[0, 1:].tolist()
    while found and found[-1] in (0, 2, *STOPS):
        found.pop()
    return found  # type: ignore[no-any-return]


def answer(model: PreTrainedModel, prompt: list[int], rules: SamplingParams = GREEDY, **options: object) -> Completion:
    settings: dict[str, object] = {"max_new_tokens": 24, "stop_ids": (), "seed": 0} | options
    return stream(model, TOKENIZER, prompt, rules=rules, **settings).completion  # type: ignore[arg-type]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("rules", [GREEDY, VARIED], ids=["greedy", "with a penalty"])
@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_is_transformers_generate(model_type: str, rules: SamplingParams) -> None:
    model = tiny_model(model_type)
    for prompt in prompts(8):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None,
            pad_token_id=0, repetition_penalty=rules.repetition_penalty,
        )  # fmt: skip
        assert list(answer(model, prompt, rules).token_ids) == expected[0, 1:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", mostly_slow(TYPES, "t5", "bart"))
def test_c35_batched_is_one_by_one(model_type: str) -> None:
    """64 prompts of different lengths, greedy, float32, token for token; the encoder's padding is hidden."""
    model = tiny_model(model_type)
    options = {"rules": VARIED, "max_new_tokens": 24, "stop_ids": tuple(range(310, 320))}
    together = complete_batch(model, TOKENIZER, prompts(64), batch_size=64, **options)  # type: ignore[arg-type]
    alone = [answer(model, prompt, **options) for prompt in prompts(64)]  # type: ignore[arg-type]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert {a.finish_reason for a in alone} == {"stop", "length"}
    assert len({a.token_ids for a in alone}) > 32, "the answers differ, so the source is read"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", mostly_slow(TYPES, "t5", "bart"))
def test_c36_cached_is_uncached(model_type: str) -> None:
    """64 prompts × 64 tokens, float32: identical."""
    model, chosen = tiny_model(model_type), []
    rows = torch.randint(3, 290, (64, 12), generator=torch.Generator().manual_seed(0)).tolist()
    for use_cache in (True, False):
        context, tokens = DecoderState(model, use_cache=use_cache), []
        ids, mask = context.begin(rows)
        for _ in range(64):
            ids, mask = context.read(ids, mask).argmax(-1, keepdim=True), None
            tokens.append(ids)
        chosen.append(torch.cat(tokens, dim=1).tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("model_type", TYPES)
def test_the_encoder_reads_once_with_and_without_a_cache(model_type: str) -> None:
    model, passes = tiny_model(model_type), []
    model.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    for use_cache in (True, False):
        answer(model, [5, 6, 7], context=DecoderState(model, use_cache=use_cache))
    assert len(passes) == 2


@pytest.mark.slow
def test_a_decoder_with_another_number_of_layers_than_its_encoder() -> None:
    model = tiny_model("t5", num_layers=1, num_decoder_layers=3)
    for prompt in prompts(3):
        cached, uncached = (
            answer(model, prompt, VARIED),
            answer(model, prompt, VARIED, context=DecoderState(model, use_cache=False)),
        )
        assert cached.token_ids == uncached.token_ids


def test_what_the_encoder_read_takes_no_position_of_the_decoder() -> None:
    """16 positions: 16 tokens may be read by the encoder, and 16 said by the decoder."""
    model = tiny_model("bart", max_position_embeddings=16)
    assert len(answer(model, [5] * 16).token_ids) == 16
    with pytest.raises(DataError, match="17 tokens"):
        answer(model, [5] * 17)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_an_answer_that_must_end_at_its_limit_is_that_of_transformers(model_type: str) -> None:
    """BART's and Marian's forced_eos_token_id: the last token that the limit allows is the end, and no other."""
    model = tiny_model(model_type)
    rules = SamplingParams(repetition_penalty=1.6, last=(2,))
    options = {"max_new_tokens": 9, "repetition_penalty": 1.6, "forced_eos_token_id": 2, "eos_token_id": [2, *STOPS]}
    for prompt in prompts(8):
        cut = answer(model, prompt, rules, max_new_tokens=9, stop_ids=(2, *STOPS))
        expected = of_transformers(model, prompt, **options)
        assert list(cut.token_ids) == expected
        assert (cut.finish_reason == "length") == (len(cut.token_ids) == 8), "a limit is no word of the model's"


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_saved_length_of_the_whole_is_that_of_transformers(model_type: str) -> None:
    """`max_length` counts the start token."""
    model, options = tiny_model(model_type), {"max_length": 9, "repetition_penalty": 1.6}
    most = saved_limit(GenerationConfig(**options), reads_source=True)
    expected = of_transformers(model, [5, 6, 7], max_new_tokens=None, **options)
    assert list(answer(model, [5, 6, 7], VARIED, max_new_tokens=most).token_ids) == expected
    assert len(expected) == 8


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("last", [(), (2,)], ids=["free", "forced end"])
def test_beams_are_those_of_transformers(model_type: str, last: tuple[int, ...]) -> None:
    model = tiny_model(model_type)
    rules = SamplingParams(repetition_penalty=1.6, num_beams=3, last=last, first=7, length_penalty=0.8)
    options = {"max_new_tokens": 9, "repetition_penalty": 1.6, "num_beams": 3, "length_penalty": 0.8}
    forced = {"forced_bos_token_id": 7, "forced_eos_token_id": 2 if last else None, "eos_token_id": [2, *STOPS]}
    for prompt in prompts(6):
        found = answer(model, prompt, rules, max_new_tokens=9, stop_ids=(2, *STOPS))
        expected = of_transformers(model, prompt, **options, **forced)
        assert list(found.token_ids) == expected


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_sampled_answers_do_not_depend_on_their_neighbours(model_type: str) -> None:
    """Row n of a batch draws from seed + n, from the distribution that it would have alone."""
    model = tiny_model(model_type)
    rules = SamplingParams(temperature=0.9, top_k=40, top_p=0.95)
    options = {"rules": rules, "max_new_tokens": 12, "stop_ids": STOPS}
    together = complete_batch(model, TOKENIZER, prompts(12), seed=5, batch_size=12, **options)  # type: ignore[arg-type]
    for row, prompt in enumerate(prompts(12)):
        alone = answer(model, prompt, **options, seed=5 + row)  # type: ignore[arg-type]
        assert alone.token_ids == together[row].token_ids


def test_the_start_token_may_be_another_than_the_models() -> None:
    """mBART-25 begins from the code of the target's language."""
    model = tiny_model("mbart")
    for start in (11, 250):
        rules = SamplingParams(repetition_penalty=1.6, start=start)
        expected = of_transformers(model, [5, 6, 7], decoder_start_token_id=start, repetition_penalty=1.6)
        assert list(answer(model, [5, 6, 7], rules).token_ids) == expected


@pytest.mark.parametrize(("model_type", "expected"), [("t5", None), ("bart", 512), ("marian", 512)])
def test_learned_positions(model_type: str, expected: int | None) -> None:
    assert learned_positions(tiny_model(model_type)) == expected


def test_a_vocabulary_of_the_size_of_the_positions_is_no_position_table() -> None:
    assert learned_positions(tiny_model("t5", vocab_size=512)) is None


def test_the_answer_begins_with_the_token_that_the_model_asks_for() -> None:
    model = tiny_model("bart")
    begun = answer(model, [5, 6, 7], SamplingParams(first=41, never=(230,)))
    ids = torch.tensor([[5, 6, 7]])
    settings = {"forced_bos_token_id": 41, "bad_words_ids": [[230]], "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, **settings)
    assert list(begun.token_ids) == expected[0, 1:].tolist()
    assert begun.token_ids[0] == 41


def test_a_decoder_without_a_start_token_is_refused() -> None:
    model = tiny_model("bart", decoder_start_token_id=None)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="no start token"):
        answer(model, [5, 6])
