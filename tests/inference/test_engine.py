"""Answers: the same as transformers' own, alone and together, with and without a cache."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, set_seed

from loraft.errors import ConfigError, DataError, NonFiniteError
from loraft.inference.completion import Completion, Finish, stop_texts_of
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import complete_batch, stream
from loraft.inference.prompt_limits import prompt_limit
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import GREEDY, SamplingParams
from tests.inference.test_decoder_state import adapted
from tests.tiny import TINY_MODEL_TYPES, mostly_slow, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DRAWN = SamplingParams(temperature=0.9, top_k=40, top_p=0.95)
SIX = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "bloom")


def prompts(count: int, longest: int = 24, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens, special ones aside."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 290, (length,), generator=generator).tolist() for length in lengths]


def answer(
    model: torch.nn.Module, prompt: list[int], *, rules: SamplingParams = GREEDY, **options: object
) -> Completion:
    settings: dict[str, object] = {"max_new_tokens": 16, "stop_ids": (), "seed": 0} | options
    return stream(model, TOKENIZER, prompt, rules=rules, **settings).completion  # type: ignore[arg-type]


def of_transformers(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return ids[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", TINY_MODEL_TYPES)
def test_greedy_is_transformers_generate(model_type: str) -> None:
    model = tiny_model(model_type)
    for prompt in prompts(4):
        assert list(answer(model, prompt, max_new_tokens=24).token_ids) == of_transformers(model, prompt, 24)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("model_type", mostly_slow(SIX, "llama", "gpt2"))
def test_c35_batched_is_one_by_one(model_type: str) -> None:
    """64 prompts of different lengths, greedy, float32, token for token; stop ids make rows end at different steps."""
    model = tiny_model(model_type)
    options = {"max_new_tokens": 24, "stop_ids": tuple(range(290, 320))}
    together = complete_batch(model, TOKENIZER, prompts(64), rules=GREEDY, batch_size=64, **options)  # type: ignore[arg-type]
    alone = [answer(model, prompt, **options) for prompt in prompts(64)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.finish_reason for a in together] == [a.finish_reason for a in alone]
    assert {a.finish_reason for a in alone} == {"stop", "length"}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", mostly_slow(TINY_MODEL_TYPES, "llama", "gpt2"))
def test_c36_cached_is_uncached(model_type: str) -> None:
    """64 prompts × 64 tokens, float32: identical; 16 × 32 of most families."""
    model, chosen = tiny_model(model_type), []
    rows, length = (64, 64) if model_type in SIX else (16, 32)
    for use_cache in (True, False):
        context, tokens = DecoderState(model, use_cache=use_cache), []
        ids = torch.randint(3, 290, (rows, 12), generator=torch.Generator().manual_seed(0))
        for _ in range(length):
            ids = context.read(ids).argmax(-1, keepdim=True)
            tokens.append(ids)
        chosen.append(torch.cat(tokens, dim=1).tolist())
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_c36_a_stream_without_a_cache_is_one_with(model_type: str) -> None:
    model = tiny_model(model_type)
    for prompt in prompts(3):
        cached, uncached = answer(model, prompt), answer(model, prompt, context=DecoderState(model, use_cache=False))
        assert cached.token_ids == uncached.token_ids
        assert cached.logprobs == pytest.approx(uncached.logprobs, abs=1e-4)


@pytest.mark.slow
def test_a_drawn_row_depends_on_its_seed_and_not_on_its_batch() -> None:
    model = tiny_model("llama")
    rows = prompts(7)
    options = {"rules": DRAWN, "max_new_tokens": 12, "stop_ids": (), "seed": 5}
    in_one = complete_batch(model, TOKENIZER, rows, **options)  # type: ignore[arg-type]
    in_threes = complete_batch(model, TOKENIZER, rows, batch_size=3, **options)  # type: ignore[arg-type]
    alone = [answer(model, row, rules=DRAWN, max_new_tokens=12, seed=5 + i) for i, row in enumerate(rows)]
    assert [a.token_ids for a in in_one] == [a.token_ids for a in in_threes] == [a.token_ids for a in alone]
    assert (
        answer(model, rows[0], rules=DRAWN, seed=1).token_ids != answer(model, rows[0], rules=DRAWN, seed=2).token_ids
    )


def test_the_global_random_state_is_left_alone() -> None:
    model = tiny_model("llama")
    set_seed(3)
    before = torch.get_rng_state()
    for seed in (0, None):
        answer(model, [5, 6], rules=DRAWN, seed=seed)
        complete_batch(model, TOKENIZER, prompts(3), rules=DRAWN, max_new_tokens=4, stop_ids=(), seed=seed)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_each_answer_is_another() -> None:
    model = tiny_model("llama")
    assert answer(model, [5, 6], rules=DRAWN, seed=None) != answer(model, [5, 6], rules=DRAWN, seed=None)


def test_c8_any_of_several_stop_ids_ends_the_answer_and_is_not_in_it() -> None:
    model = tiny_model("llama")
    free = answer(model, [5, 6, 7])
    first, second = free.token_ids[6], free.token_ids[3]
    stopped = answer(model, [5, 6, 7], stop_ids=(first, second))
    cut = min(free.token_ids.index(first), free.token_ids.index(second))
    assert stopped.token_ids == free.token_ids[:cut]
    assert stopped.finish_reason == "stop"
    assert len(stopped.logprobs) == cut
    assert free.finish_reason == "length"


def test_a_stop_id_at_once_is_an_empty_answer() -> None:
    model = tiny_model("llama")
    stop = answer(model, [5, 6, 7]).token_ids[0]
    empty = answer(model, [5, 6, 7], stop_ids=(stop,))
    assert (empty.completion, empty.token_ids, empty.finish_reason) == ("", (), "stop")
    assert empty.decode_tokens_per_second is None
    assert list(stream(model, TOKENIZER, [5, 6, 7], rules=GREEDY, max_new_tokens=4, stop_ids=(stop,))) == []


@pytest.mark.slow
@pytest.mark.parametrize("stops", [["the", "and"], ["e"], ["zzzz"]])
def test_a_stop_text_ends_the_answer_and_is_not_in_its_text(stops: list[str]) -> None:
    """Its tokens are in `token_ids`, as without it; what might have become one comes with a later token or the end."""
    model, rules = tiny_model("llama"), SamplingParams(0.8, top_k=60)
    for seed in range(6):
        options = {"rules": rules, "max_new_tokens": 40, "stop_ids": range(3), "seed": seed}
        free = stream(model, TOKENIZER, [5, 6], **options).completion  # type: ignore[arg-type]
        answered = stream(model, TOKENIZER, [5, 6], stop_texts=stops, **options)  # type: ignore[arg-type]
        tokens, whole = list(answered), answered.completion
        cuts = [place for stop in stops if (place := free.completion.find(stop)) >= 0]
        assert whole.completion == free.completion[: min(cuts, default=None)]
        assert "".join(token.text for token in tokens) == whole.completion
        assert whole.token_ids == free.token_ids[: len(whole.token_ids)]
        assert whole.finish_reason == ("stop" if cuts else free.finish_reason)
        assert answered.ending is not None
        assert (answered.ending.by == "stop_text") == bool(cuts)


def test_a_special_token_is_a_stop_text_too() -> None:
    """Special tokens are never in a text, so their ids end the answer."""
    model, options = tiny_model("llama"), {"rules": SamplingParams(first=1), "max_new_tokens": 4, "stop_ids": ()}
    stopped = stream(model, TOKENIZER, [5, 6], stop_texts=["<|im_start|>"], **options)  # type: ignore[arg-type]
    assert (stopped.completion.token_ids, stopped.completion.finish_reason) == ((), "stop")
    assert stream(model, TOKENIZER, [5, 6], **options).completion.token_ids[0] == 1  # type: ignore[arg-type]


def test_a_special_token_that_is_nobodys_end_or_beginning_is_a_stop_text_too() -> None:
    """As most of Llama 3's are: none of those that the tokenizer declares by a name."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|eom|>", special=True)], special_tokens=True)
    end = tokenizer.convert_tokens_to_ids("<|eom|>")
    assert end not in tokenizer.all_special_ids
    options = {"rules": SamplingParams(first=end), "max_new_tokens": 4, "stop_ids": (), "stop_texts": ["<|eom|>"]}
    assert stream(tiny_model("llama"), tokenizer, [5, 6], **options).completion.token_ids == ()  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_c35_and_c36_hold_with_a_repetition_penalty(model_type: str) -> None:
    """Padding is not seen, and counts for nothing: as transformers, together, alone, with and without a cache."""
    model, rules = tiny_model(model_type), SamplingParams(repetition_penalty=1.5)
    rows = [[*row, 0] for row in prompts(12)]  # the padding id is a token of each row as well
    together = complete_batch(model, TOKENIZER, rows, rules=rules, max_new_tokens=24, stop_ids=())
    for row, answered in zip(rows, together, strict=True):
        ids = torch.tensor([row])
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 1.5}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **settings)
        assert list(answered.token_ids) == expected[0, len(row) :].tolist()
        for use_cache in (True, False):
            alone = answer(model, row, rules=rules, max_new_tokens=24, context=DecoderState(model, use_cache=use_cache))
            assert alone.token_ids == answered.token_ids


def test_stop_texts_of_caller_and_generation_config() -> None:
    saved = GenerationConfig(stop_strings="###")
    assert stop_texts_of(saved, GenerationRequest(stop=("a", "###"))) == ("a", "###")
    assert stop_texts_of(saved, GenerationRequest()) == ("###",)
    assert stop_texts_of(None, GenerationRequest()) == ()
    with pytest.raises(ConfigError, match="stop: must not be empty"):
        stop_texts_of(None, GenerationRequest(stop=("",)))


@pytest.mark.parametrize("seed", range(6))
def test_the_tokens_of_a_stream_make_up_its_completion(seed: int) -> None:
    """Random bytes are mostly unfinished characters: their text waits, and comes with a later token or at the end."""
    answered = stream(
        tiny_model("llama"),
        TOKENIZER,
        [5, 6],
        rules=SamplingParams(1.5),
        max_new_tokens=40,
        stop_ids=range(3),
        seed=seed,
    )
    tokens = list(answered)
    whole = answered.completion
    assert "".join(token.text for token in tokens) == whole.completion
    assert whole.completion == TOKENIZER.decode(whole.token_ids, skip_special_tokens=True)
    assert tuple(token.id for token in tokens) == whole.token_ids
    assert tuple(token.logprob for token in tokens) == whole.logprobs
    assert [token.index for token in tokens] == list(range(len(tokens)))


def test_what_waits_when_the_answer_stops_is_the_last_tokens_text() -> None:
    """The answer is cut by a stop id in the middle of a character, which a stream without it would have finished."""
    model, rules = tiny_model("llama"), SamplingParams(1.5)
    free = list(stream(model, TOKENIZER, [5, 6], rules=rules, max_new_tokens=40, stop_ids=(), seed=0))
    ids = [token.id for token in free]
    cut = next(i for i in range(1, 40) if not free[i - 1].text and ids[i] not in ids[:i] and ids[i - 1] > 2)
    stopped = stream(model, TOKENIZER, [5, 6], rules=rules, max_new_tokens=40, stop_ids=(ids[cut],), seed=0)
    tokens = list(stopped)
    assert [token.id for token in tokens] == ids[:cut]
    assert tokens[-1].text.endswith("\N{REPLACEMENT CHARACTER}")
    assert "".join(token.text for token in tokens) == stopped.completion.completion == TOKENIZER.decode(ids[:cut])


def test_logprobs_are_the_models_own_before_the_rules() -> None:
    model, prompt = tiny_model("llama"), [5, 6, 7]
    drawn = answer(model, prompt, rules=SamplingParams(0.5, 3), max_new_tokens=5)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(drawn.token_ids)])).logits[0].log_softmax(-1)
    expected = [logits[2 + i, token_id].item() for i, token_id in enumerate(drawn.token_ids)]
    assert drawn.logprobs == pytest.approx(expected, abs=1e-4)


def test_results_come_in_the_order_of_the_prompts() -> None:
    rows = prompts(9)
    whole = complete_batch(
        tiny_model("llama"), TOKENIZER, rows, rules=GREEDY, max_new_tokens=2, stop_ids=(), batch_size=4
    )
    assert [a.prompt for a in whole] == [TOKENIZER.decode(row) for row in rows]
    assert complete_batch(tiny_model("llama"), TOKENIZER, [], rules=GREEDY, max_new_tokens=2, stop_ids=()) == []


def test_times_are_measured() -> None:
    measured = answer(tiny_model("llama"), [5, 6, 7])
    assert measured.prefill_ms > 0
    assert measured.decode_tokens_per_second is not None
    assert 0 < measured.decode_tokens_per_second < math.inf


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_an_answer_ends_where_learned_positions_end(model_type: str) -> None:
    """16 positions, 10 in the prompt: six more are read, and the token after them is chosen."""
    model = tiny_model(model_type, max_position_embeddings=16)
    row = list(range(20, 30))
    ended = answer(model, row, max_new_tokens=50)
    assert (len(ended.token_ids), ended.finish_reason) == (7, "length")
    assert len(answer(model, list(range(20, 36))).token_ids) == 1
    for most, by in ((50, "positions"), (7, "limit")):  # no larger limit helps in the first case
        answered = stream(model, TOKENIZER, row, rules=GREEDY, max_new_tokens=most, stop_ids=())
        assert len(answered.completion.token_ids) == 7
        assert answered.ending == Finish(by, limit=7)  # type: ignore[arg-type]
    rows = [row, row[:4]]
    together = complete_batch(model, TOKENIZER, rows, rules=GREEDY, max_new_tokens=50, stop_ids=())
    assert [len(a.token_ids) for a in together] == [7, 13]


def test_rotary_positions_do_not_end_an_answer() -> None:
    assert len(answer(tiny_model("llama", max_position_embeddings=16), [5] * 14).token_ids) == 16


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5"])
def test_a_prompt_beyond_the_positions_of_training_is_refused_with_both_lengths(model_type: str) -> None:
    sizes = {} if model_type == "t5" else {"max_position_embeddings": 16}
    model = tiny_model(model_type, **sizes)
    if model_type == "t5":  # which has no positions that end
        assert answer(model, [5] * 600, max_new_tokens=1).token_ids
        return
    assert answer(model, [5] * 16, max_new_tokens=1).token_ids
    with pytest.raises(DataError, match="has 17 tokens, and this model has learned 16 positions") as refused:
        answer(model, [5] * 17)
    assert refused.value.problems[0].remedy


@pytest.mark.parametrize(("rope_type", "most"), [("default", 16), ("linear", 64), ("dynamic", 64), ("yarn", 16)])
def test_scaled_positions_reach_farther(rope_type: str, most: int) -> None:
    scaled = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0}
    assert prompt_limit(tiny_model("llama", max_position_embeddings=16, rope_parameters=scaled)) == most


def test_prompts_that_do_not_fit_are_refused_by_number() -> None:
    model = tiny_model("gpt2", max_position_embeddings=16)
    with pytest.raises(DataError) as refused:
        complete_batch(model, TOKENIZER, [[5], [5] * 17, []], rules=GREEDY, max_new_tokens=2, stop_ids=())
    too_long, empty = refused.value.problems
    assert (too_long.where, empty.where) == ("prompt 2", "prompt 3")
    assert "17 tokens" in too_long.message
    assert "16" in str(too_long.remedy)
    with pytest.raises(DataError, match="no tokens") as alone:
        stream(model, TOKENIZER, [], rules=GREEDY, max_new_tokens=2, stop_ids=())
    assert alone.value.problems[0].where == "the prompt"
    with pytest.raises(ConfigError, match="max_new_tokens"):
        answer(model, [5], max_new_tokens=0)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(NonFiniteError):
        answer(model, [5, 6])


def test_an_adapted_model_answers_with_its_adapter() -> None:
    base = answer(tiny_model("llama"), [5, 6, 7])
    model = adapted(tiny_model("llama"))
    expected = model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=16, eos_token_id=None, pad_token_id=0)
    assert list(answer(model, [5, 6, 7]).token_ids) == expected[0, 3:].tolist() != list(base.token_ids)


def test_a_stream_that_is_stopped_gives_the_model_back() -> None:
    model = tiny_model("llama").train()
    answered = stream(model, TOKENIZER, [5, 6], rules=GREEDY, max_new_tokens=9, stop_ids=())
    next(answered)
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    answered.stop()
    assert model.training
    with pytest.raises(ValueError, match="stopped"):
        _ = answered.completion


@pytest.mark.slow
def test_smollm2_is_transformers_generate(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    questions = ("What is the capital of France?", "Write a haiku about rain.", "Say hello in Japanese.")
    chats = [[{"role": "user", "content": question}] for question in questions]
    rows = [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]
    expected = []
    for row in rows:
        ids = model.generate(torch.tensor([row]), max_new_tokens=32, do_sample=False)[0, len(row) :].tolist()
        expected.append(tuple(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids))
    options = {"rules": GREEDY, "max_new_tokens": 32, "stop_ids": (tokenizer.eos_token_id,)}
    assert [stream(model, tokenizer, row, **options).completion.token_ids for row in rows] == expected
    assert [a.token_ids for a in complete_batch(model, tokenizer, rows, **options)] == expected
