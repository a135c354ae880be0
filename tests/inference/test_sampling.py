"""Sampling rules, against values worked out by hand and against transformers."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loraft.errors import ConfigError, NonFiniteError
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import (
    GREEDY,
    SamplingParams,
    apply_logit_rules,
    inverse_draw,
    normalizers,
    probabilities,
    read_finite,
    sample,
    saved_limit,
    unheeded_defaults,
)

# Logits whose softmax is 0.5, 0.3, 0.15, 0.05, not in order.
LOGITS = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()


def shares(rules: SamplingParams) -> list[float]:
    return probabilities(LOGITS, rules)[0].tolist()  # type: ignore[no-any-return]


def by_hand(*values: float) -> list[float]:
    return pytest.approx(list(values), abs=1e-6)  # type: ignore[no-any-return]


def test_temperature_divides_the_logits() -> None:
    """At temperature 1/2 probabilities are squared: 0.0225, 0.25, 0.0025, 0.09 of 0.365."""
    hot = shares(SamplingParams(temperature=0.5))
    assert hot == by_hand(0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert shares(SamplingParams(1, top_k=2)) == by_hand(0, 0.625, 0, 0.375)


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert shares(SamplingParams(1, top_k=99)) == by_hand(0.15, 0.5, 0.05, 0.3)


def test_top_p_includes_the_token_that_crosses() -> None:
    """0.5 falls short of 0.6, and 0.5 + 0.3 crosses it."""
    assert shares(SamplingParams(1, top_p=0.6)) == by_hand(0, 0.625, 0, 0.375)


def test_top_p_below_the_likeliest_keeps_it_alone() -> None:
    assert shares(SamplingParams(1, top_p=0.01)) == by_hand(0, 1, 0, 0)


def test_top_p_of_one_keeps_all() -> None:
    assert shares(SamplingParams(1, top_p=1.0)) == by_hand(0.15, 0.5, 0.05, 0.3)


def test_top_p_is_the_mass_of_what_top_k_left() -> None:
    """Top-k 2 leaves 0.625 and 0.375, so top-p 0.6 keeps one; of the whole it would keep two."""
    assert shares(SamplingParams(1, top_k=2, top_p=0.6)) == by_hand(0, 1, 0, 0)


def test_min_p_keeps_what_is_a_share_as_likely_as_the_likeliest() -> None:
    """0.5 · 0.25 is 0.125: 0.15 and 0.3 stay beside 0.5, and 0.05 goes."""
    kept = shares(SamplingParams(1, min_p=0.25))
    assert kept == by_hand(0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95)


def test_the_penalty_of_seen_tokens_by_hand() -> None:
    """Divided where positive, multiplied where negative; tokens that were not seen keep theirs."""
    logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]])
    rules = SamplingParams(repetition_penalty=2.0)
    assert apply_logit_rules(logits, rules, seen=seen).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_what_must_not_come_and_what_must_come_first() -> None:
    rules = SamplingParams(never=(1,), first=0)
    assert apply_logit_rules(LOGITS, rules).argmax().item() == 3
    assert apply_logit_rules(LOGITS, rules, at_start=True).softmax(-1).tolist() == [[1, 0, 0, 0]]


def test_normalizers_are_what_logits_exceed_their_log_probabilities_by() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits - normalizers(logits)[:, None], logits.log_softmax(-1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_choose_no_token(bad: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, bad]])
    with pytest.raises(NonFiniteError):
        read_finite(normalizers(logits), logits.argmax(-1))
    with pytest.raises(NonFiniteError):
        sample(logits.softmax(-1), [torch.Generator()] * 2)


def test_numbers_are_read_as_they_are() -> None:
    ids, logprobs = torch.tensor([2**31 + 1, 7]), torch.tensor([-0.1, -12.3])
    assert read_finite(torch.zeros(2), ids, logprobs) == [[2**31 + 1, 7], logprobs.tolist()]


def test_sixteen_bit_logits_give_float32() -> None:
    assert probabilities(LOGITS.bfloat16(), SamplingParams(1)).dtype == torch.float32


CASES = [
    *itertools.product((0.3, 1.0, 1.7), (None, 1, 5, 50, 2000), (None, 0.05, 0.5, 0.9, 0.99), (None,), (1.0,)),
    *itertools.product((0.7, 1.3), (None, 50), (None, 0.9), (0.0, 0.02, 0.2, 1.0), (1.0, 1.3, 0.8)),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p", "penalty"), CASES)
def test_as_transformers(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> None:
    """In the order of its processors: the penalty, forbidden ids, temperature, top-k, top-p, min-p."""
    logits = 3 * torch.randn(8, 1000, generator=torch.Generator().manual_seed(7))
    ids = torch.randint(0, 1000, (8, 200), generator=torch.Generator().manual_seed(8))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    expected = NoBadWordsLogitsProcessor([[3], [700]], eos_token_id=torch.tensor([1]))(ids, expected)
    expected = TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    if min_p is not None:
        expected = MinPLogitsWarper(min_p)(ids, expected)
    rules = SamplingParams(temperature, top_k, top_p, min_p, penalty, never=(3, 700))
    seen = torch.zeros(8, 1000, dtype=torch.bool).scatter(1, ids, True)
    ours = probabilities(apply_logit_rules(logits, rules, seen=seen), rules)
    torch.testing.assert_close(ours, expected.softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("draw", [sample, inverse_draw])
def test_choose_draws_by_the_distribution(draw: Callable[..., torch.Tensor]) -> None:
    """20,000 draws: each share within five standard errors, 5 · √(p (1 - p) / 20,000)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).expand(20_000, 4)
    shares = draw(rows, [generator] * 20_000).bincount(minlength=4) / 20_000
    for share, p in zip(shares.tolist(), rows[0].tolist(), strict=True):
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 20_000)


@pytest.mark.parametrize("draw", [sample, inverse_draw])
def test_a_row_draws_the_same_whatever_is_beside_it(draw: Callable[..., torch.Tensor]) -> None:
    rows = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    together = draw(rows, [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    alone = [draw(rows[i : i + 1], [torch.Generator().manual_seed(5 + i)]).item() for i in range(3)]
    assert together.tolist() == alone


def test_as_cuda_draws_no_token_without_probability_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(2, 5)
    for drawn, expected in ((0.0, 1), (1.0, 3)):
        monkeypatch.setattr(torch, "rand", lambda *_, drawn=drawn, **__: torch.tensor([drawn], dtype=torch.float64))
        assert inverse_draw(rows, [torch.Generator()] * 2).tolist() == [expected, expected]


def test_choose_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    sample(torch.ones(2, 9), [torch.Generator().manual_seed(0) for _ in range(2)])
    assert torch.equal(before, torch.get_rng_state())


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


unheeded = partial(unheeded_defaults, reads_source=False)


def test_what_a_generation_config_asks_for_in_vain_is_named() -> None:
    asks = GenerationConfig(no_repeat_ngram_size=3, min_length=56, length_penalty=2.0, bad_words_ids=[[7]])
    assert unheeded(asks) == ("min_length=56", "no_repeat_ngram_size=3")
    assert unheeded(GenerationConfig(bad_words_ids=[[7], [8, 9]])) == ("bad_words_ids=[[7], [8, 9]]",)
    assert unheeded(GenerationConfig(do_sample=True, top_k=5)) == unheeded(None) == ()


def test_a_length_of_prompt_and_answer_is_heeded_behind_an_encoder_alone() -> None:
    """There it counts one token besides the answer; `max_new_tokens` wins over it, as in transformers."""
    asks = GenerationConfig(max_length=142)
    assert (saved_limit(asks, reads_source=True), unheeded_defaults(asks, reads_source=True)) == (141, ())
    assert (saved_limit(asks, reads_source=False), unheeded(asks)) == (None, ("max_length=142",))
    both = GenerationConfig(max_length=142, max_new_tokens=7)
    assert (saved_limit(both, reads_source=True), saved_limit(both, reads_source=False), unheeded(both)) == (7, 7, ())
