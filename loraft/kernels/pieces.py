"""A tensor some rows at a time: what is computed of it then takes no memory that depends on its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any

PIECE = 1 << 18
"""The numbers of a piece: in float32 a MiB, which stays in the cache from reading to writing."""
Run = Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]]
"""Makes a piece of each span, in their order: `map`, or something like it that works ahead."""


def spans(shape: Sequence[int]) -> Iterator[slice]:
    """Spans of the rows of a tensor `[rows, …]` that make a piece each; a row that is larger is one by itself."""
    count = max(1, PIECE // max(1, prod(shape[1:])))
    return (slice(start, min(start + count, shape[0])) for start in range(0, shape[0], count))
