"""Counts in a sentence: one row, two rows. Light."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun, and whatever else of the sentence follows it: `1 row is`, `1,200 rows are`.

    Args:
        number: How many.
        one: What stands behind the number 1.
        many: What stands behind every other; None is `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
