"""Counts in a sentence."""

from __future__ import annotations

import pytest

from loraft.figures import counted


@pytest.mark.parametrize(
    ("number", "words", "told"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (1200, ("row",), "1,200 rows"),
        (1, ("row is", "rows are"), "1 row is"),
        (2, ("row is", "rows are"), "2 rows are"),
    ],
)
def test_a_noun_follows_its_number(number: int, words: tuple[str, ...], told: str) -> None:
    assert counted(number, *words) == told
