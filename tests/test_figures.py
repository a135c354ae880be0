"""Figures of losses and counts, against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from loraft.figures import in_order, label_figures, perplexity, shared_beginning


def test_a_model_that_guesses_among_eight_has_perplexity_eight() -> None:
    assert perplexity(5 * math.log(8), 5) == pytest.approx(8)


def test_c38_perplexity_is_of_the_tokens_and_not_of_the_batches() -> None:
    """Two batches, 1 token at ln 16 and 3 tokens at 0: the mean of the batches' means would say exp(ln 16 / 2) = 4."""
    assert perplexity(math.log(16) + 0.0, 1 + 3) == pytest.approx(2)


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert perplexity(1e6, 1) == math.inf


def test_of_a_pair_that_is_rewarded_alike_half_is_in_order_and_of_no_numbers_nothing_is_known() -> None:
    assert [in_order(*pair) for pair in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0))] == [1, 0, 0.5]
    assert math.isnan(in_order(math.nan, 1.0))


def test_perplexity_of_no_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        perplexity(0.0, 0)


def test_macro_f1_is_over_the_labels_that_are_right_or_given() -> None:
    """Four rows of a, one of b that was given a; nobody is or was given c: F1 is 8/9 and 0, not a third of 8/9."""
    found = label_figures(np.array([4, 1, 0]), np.array([5, 0, 0]), np.array([4, 0, 0]))
    assert found == {"accuracy": 0.8, "macro_f1": pytest.approx(4 / 9)}


def test_the_beginning_that_two_sequences_share() -> None:
    assert shared_beginning([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared_beginning([1, 2], [1, 2, 3]) == 2
    assert shared_beginning([], [1]) == 0
    assert shared_beginning([2], [1]) == 0
    assert shared_beginning([1, 2, 3], (1, 2, 4)) == 2
    texts = ["".join(letters) for length in range(6) for letters in itertools.product("ab", repeat=length)]
    for one, other in itertools.product(texts, repeat=2):
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        assert shared_beginning(one, other) == len([*alike])
