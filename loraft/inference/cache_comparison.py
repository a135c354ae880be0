"""The same answer with and without a cache of keys and values, side by side.

In float32 both ways give the same tokens. In 16 bits products over one row and over many are rounded differently, so
that two tokens which are nearly as likely may change places; from there on the answers go their own ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import zip_longest

from loraft.inference.completion import Completion
from loraft.tokenization.token_strings import Piece


@dataclass(frozen=True)
class Speed:
    """How fast an answer came.

    Attributes:
        prefill_ms: Milliseconds until the first token was chosen.
        decode_tokens_per_second: The rate after it; None where no step followed.
    """

    prefill_ms: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class LogprobDifference:
    """Where two answers part.

    Attributes:
        index: The place in the answer, from 0.
        with_cache: The token there; None where the answer has ended.
        without_cache: The token there; None where the answer has ended.
    """

    index: int
    with_cache: Piece | None
    without_cache: Piece | None


@dataclass(frozen=True)
class CacheComparison:
    """One answer, made in both ways.

    Attributes:
        same_tokens: Whether both ways gave the same tokens.
        first_difference: Where they part; None where they do not.
        with_cache: How fast it was with a cache.
        without_cache: How fast it was without.
    """

    same_tokens: bool
    first_difference: LogprobDifference | None
    with_cache: Speed
    without_cache: Speed

    def as_dict(self) -> dict[str, object]:
        """The comparison as JSON shows it."""
        return asdict(self)


def compare_cache(cached: Completion, uncached: Completion, piece: Callable[[int], Piece]) -> CacheComparison:
    """Compare an answer that was made with a cache with one that was made without.

    Args:
        cached: The first.
        uncached: The second.
        piece: Spells a token.
    """
    pairs = enumerate(zip_longest(cached.token_ids, uncached.token_ids))
    apart = next(((index, *pair) for index, pair in pairs if pair[0] != pair[1]), None)
    difference = None
    if apart is not None:
        index, one, other = apart
        spelled = [piece(token_id) if token_id is not None else None for token_id in (one, other)]
        difference = LogprobDifference(index, *spelled)
    return CacheComparison(difference is None, difference, _speed(cached), _speed(uncached))


def _speed(completion: Completion) -> Speed:
    return Speed(completion.prefill_ms, completion.decode_tokens_per_second)
