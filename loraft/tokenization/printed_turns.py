"""A conversation as a chat template prints it, and which of its turns are alike.

To find where the prompt of a turn ends takes a rendering of all that is said before it: to do so for each turn takes
time that grows with the square of their number. So a turn is of the kind of another where both, and what is said before
and after them, look alike to a template, and of each kind the first and the last alone are rendered. Where both have
the same characters behind what is said before them, a turn between that has these too is taken to be as they are.

How messages look is their roles and keys, how many calls they have, whether they say anything, and the tags of thoughts
and the words of the template (`words_of`) in what they say. What else a template may tell them by, such as a length, a
number or a word in either case, is not heeded: it is noticed only where a first and a last, or the characters, differ.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import or_
from typing import cast

from loraft.rows.formats import Message
from loraft.tokenization.content_marks import THINKING, ContentPart, Places
from loraft.tokenization.template_sandbox import words_of

Find = Callable[[int], int | None]


@dataclass(frozen=True, eq=False)
class PrintedTurns:
    """The messages of a conversation, what `template` prints of them, and where in that their parts end."""

    messages: Sequence[Message]
    template: str
    text: str
    places: Places

    @cached_property
    def own(self) -> Mapping[int | None, Places]:
        """The parts of each message with their places."""
        own: dict[int | None, dict[ContentPart, Sequence[int]]] = defaultdict(dict)
        for part, found in self.places.items():
            own[part.turn][part] = found
        return own

    @cached_property
    def ends(self) -> Sequence[tuple[int, int]]:
        """Where each part ends, in order, with the message that it is of: the first one for those of tools."""
        return sorted((place, part.turn or 0) for part, found in self.places.items() for place in found)

    def ends_in(self, start: int, stop: int) -> Sequence[tuple[int, int]]:
        """Those of `ends` behind `start` and not behind `stop`."""
        first, last = (bisect_right(self.ends, (place, len(self.messages))) for place in (start, stop))
        return self.ends[first:last]

    def around(self, place: int, turns: Collection[int]) -> tuple[int | None, int | None]:
        """Who says what ends last up to a place, and which of `turns` says something next."""
        at = bisect_right(self.ends, (place, len(self.messages)))
        later = (self.ends[index][1] for index in range(at, len(self.ends)))
        return self.ends[at - 1][1] if at else None, next((turn for turn in later if turn in turns), None)

    def said_behind(self, turn: int) -> int:
        """Where the first part of the messages behind `turn` begins, or the text ends."""
        return self._said_from[turn + 1]

    @cached_property
    def _said_from(self) -> Sequence[int]:
        begins = (
            min((place - part.end for part, found in self.own[turn].items() for place in found), default=len(self.text))
            for turn in reversed(range(len(self.messages)))
        )
        return [*accumulate(begins, min, initial=len(self.text))][::-1]

    def find(self, turns: Iterable[int], find: Find) -> dict[int, int | None]:
        """What `find` finds of each turn: a place in the text where that turn begins, or none."""
        found: dict[int, int | None] = {}
        for alike in self.kinds(turns):
            self._find(alike, find, found)
        return found

    def kinds(self, turns: Iterable[int]) -> list[list[int]]:
        """The turns of each kind together; few are not worth a comparison."""
        kinds: dict[object, list[int]] = {}
        few = len(turns := list(turns)) < 3
        for turn in turns:
            kinds.setdefault(turn if few else self._kinds[turn], []).append(turn)
        return [*kinds.values()]

    def _find(self, turns: Sequence[int], find: Find, found: dict[int, int | None]) -> None:
        first, last = turns[0], turns[-1]
        found |= {turn: find(turn) for turn in {first, last} - found.keys()}
        if len(turns) < 3:
            return
        header = self._header(first, found[first])
        if header != self._header(last, found[last]):
            middle = len(turns) // 2
            self._find(turns[:middle], find, found)
            self._find(turns[middle:], find, found)
            return
        for turn in turns[1:-1]:
            said = self._said(turn - 1)
            if not isinstance(header, str):
                found[turn] = found[first]
            elif self.text.startswith(header, said):
                found[turn] = said + len(header)
            else:
                found[turn] = find(turn)

    def _header(self, turn: int, place: int | None) -> str | int | None:
        """What is printed between what is said before a turn and a place; that itself where there is no such text."""
        said = self._said(turn - 1)
        return self.text[said:place] if place and place >= said else place

    def _said(self, turn: int) -> int:
        """Where the last of what a message says ends."""
        return max((place for found in self.own[turn].values() for place in found), default=0)

    @cached_property
    def _kinds(self) -> Sequence[object]:
        """How each message looks, and those before and after, and which came last."""
        words, known = words_of(self.template), dict[object, int]()
        looks = [known.setdefault(_look(message, words), 1 << len(known)) for message in self.messages]
        after = [*accumulate([0, *looks[::-1]], or_)][-2::-1]
        kinds, before, last, answered = [], 0, 0, 0
        for message, look, later in zip(self.messages, looks, after, strict=True):
            kinds.append((look, last, answered, before, later))
            before, last, answered = before | look, look, look if message.role == "assistant" else answered
        return kinds


def _look(message: Message, words: Sequence[str]) -> object:
    """Its role and keys, how much it calls, whether it says anything, and which words that has, begins or ends with."""
    said, calls = message.content, cast("Sized", message.more.get("tool_calls", ()))
    found = (word in said and (said.startswith(word), said.endswith(word)) for word in words)
    return message.role, frozenset(message.more), len(calls), not said.strip(), THINKING.search(said) is None, *found
