"""What was read for earlier prompts, kept for later ones that begin alike: conversations, or one system prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from loraft.inference.decoder_state import DecoderState
from loraft.tokenization.boundaries import shared_beginning

WORTH_HOLDING = 16
"""For fewer common tokens than this a prompt is read anew."""


class HeldPrefixes:
    """Rows that one voice has read, the newest first, while their keys and values take no more than `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: deque[tuple[list[int], DecoderState]] = deque()

    def beginning_of(self, ids: Sequence[int]) -> DecoderState | None:
        """A copy of the longest beginning of a prompt that was read before, all but its last token at most."""
        shared = [(shared_beginning(held, ids[:-1]), place) for place, (held, _) in enumerate(self._held)]
        length, place = max(shared, default=(0, 0))
        if length < WORTH_HOLDING:
            return None
        found = self._held[place]
        del self._held[place]
        self._held.appendleft(found)
        return found[1].part(0, length)

    def hold(self, row: DecoderState) -> None:
        """Keep what was read of a row; what is a beginning of it goes, and the oldest go where there is no room."""
        ids = row.first_row
        others = (each for each in self._held if each[0] != ids[: len(each[0])])
        self._held = deque([(ids, row), *others])
        while sum(state.cache_bytes for _, state in self._held) > self._room:
            self._held.pop()
