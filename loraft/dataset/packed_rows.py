"""Tokenized rows as bytes, for the others that read a stream: as plain tuples, pickled in two thirds of the time."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

from loraft.dataset.tokenize_rows import TokenizedRow
from loraft.tokenization.examples import Example

of_example = attrgetter(*(field.name for field in fields(Example)))
of_row = attrgetter(*(field.name for field in fields(TokenizedRow) if field.name != "examples"))


def pack(rows: Sequence[TokenizedRow]) -> bytes:
    """The rows as bytes."""
    return pickle.dumps([([*map(of_example, row.examples)], of_row(row)) for row in rows])


def unpack(packed: bytes) -> list[TokenizedRow]:
    """The rows that `pack` made bytes of, here or in another process of the same run."""
    rows = pickle.loads(packed)  # noqa: S301 - torch's own exchange between the ranks of a run, which pickles as well
    return [TokenizedRow(tuple(Example(*each) for each in examples), *rest) for examples, rest in rows]
