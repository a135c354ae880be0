"""What becomes of rows is the same on the other side, every field of it."""

from __future__ import annotations

from dataclasses import fields

from loraft.dataset.tokenize_rows import TokenizedRow, pack, unpack
from loraft.errors import Problem
from loraft.tokenization.examples import Example

ROWS = [
    TokenizedRow((Example([1, 70_000], [-100, 7], "a:1", 1, 2, [0, 1]), Example([], [3], "a:1", 1, 0)), (2, 0), (1,)),
    TokenizedRow(too_long=Problem("is long", "a:2", "data", "cut it"), in_part=True, lengths=(9,)),
    TokenizedRow(untrained=True, problems=(Problem("is wrong"), Problem("too")), findings=("has a word",)),
]


def test_rows_arrive_as_they_were_sent() -> None:
    assert unpack(pack(ROWS)) == ROWS
    assert unpack(pack([])) == []
    for field in fields(TokenizedRow):
        assert any(getattr(row, field.name) != field.default for row in ROWS), f"{field.name} is said by none"
