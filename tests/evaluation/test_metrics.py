"""Figures, against values worked out by hand."""

import math

import pytest

from loraft.evaluation.metrics import exact_match_rate, is_valid_json, perplexity, valid_json_rate


def test_a_model_that_guesses_among_eight_has_perplexity_eight() -> None:
    assert perplexity(5 * math.log(8), 5) == pytest.approx(8)


def test_c38_perplexity_is_of_the_tokens_and_not_of_the_batches() -> None:
    """Two batches, 1 token at ln 16 and 3 tokens at 0: the mean of the batches' means would say exp(ln 16 / 2) = 4."""
    assert perplexity(math.log(16) + 0.0, 1 + 3) == pytest.approx(2)


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert perplexity(1e6, 1) == math.inf


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    assert exact_match_rate([" a b\n", "a  b", "A b", "a b"], ["a b"] * 4) == 0.5


@pytest.mark.parametrize("text", ['{"a": [1, null]}', " [] ", "3", '"x"'])
def test_json(text: str) -> None:
    assert is_valid_json(text)


@pytest.mark.parametrize("text", ["", "{'a': 1}", '{"a": 1} done', '{"a": NaN}', "[-Infinity]", "[" * 100_000])
def test_not_json(text: str) -> None:
    assert not is_valid_json(text)


def test_valid_json_rate_is_a_share() -> None:
    assert valid_json_rate(["{}", "{", "[]", "]"]) == 0.5


def test_nothing_has_no_figure() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        perplexity(0.0, 0)
    with pytest.raises(ValueError, match="no predictions"):
        exact_match_rate([], [])
    with pytest.raises(ValueError, match="no texts"):
        valid_json_rate([])
    with pytest.raises(ValueError, match="longer"):
        exact_match_rate(["a"], ["a", "b"])
