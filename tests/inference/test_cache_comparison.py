"""Where two answers part."""

from __future__ import annotations

from loraft.inference.completion import Completion, LogprobDifference, Speed, compare_cache
from loraft.tokenization.boundaries import Piece


def completion(*token_ids: int, speed: float | None = 30.0) -> Completion:
    return Completion("p", "c", token_ids, tuple(0.0 for _ in token_ids), "stop", "stop_id", 12.5, speed)


def piece(token_id: int) -> Piece:
    return Piece(token_id, f"t{token_id}")


def test_equal_answers_do_not_part() -> None:
    compared = compare_cache(completion(1, 2), completion(1, 2, speed=None), piece)
    assert (compared.same_tokens, compared.first_difference) == (True, None)
    assert (compared.with_cache, compared.without_cache) == (Speed(12.5, 30.0), Speed(12.5, None))


def test_the_first_difference_is_told_with_both_pieces() -> None:
    compared = compare_cache(completion(1, 2, 3), completion(1, 5, 4), piece)
    assert compared.first_difference == LogprobDifference(1, Piece(2, "t2"), Piece(5, "t5"))
    assert not compared.same_tokens


def test_an_answer_that_ends_sooner_parts_there() -> None:
    assert compare_cache(completion(1, 0), completion(1), piece).first_difference == LogprobDifference(
        1, Piece(0, "t0"), None
    )
    assert compare_cache(completion(), completion(7), piece).first_difference == LogprobDifference(
        0, None, Piece(7, "t7")
    )
