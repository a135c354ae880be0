"""Text from tokens as they come.

A character may be spread over several tokens, and a token may spell differently at the start of a text than inside
it.
It knows where a text is to end.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns ids into text one by one.

    The pieces of `add`, and at the end of `flush`, make up `tokenizer.decode` of all ids (special tokens skipped,
    spaces not cleaned up). The one exception: where the ids end inside a character of byte tokens, some tokenizers
    then spell the finished characters before it as broken too; here they stay whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._spelled: list[int] = []
        self._waiting: list[int] = []

    @property
    def waits(self) -> bool:
        """Whether there are ids whose text is not out yet."""
        return bool(self._waiting)

    def add(self, token_id: int) -> str:
        """The text that `token_id` makes readable; empty while a character is unfinished."""
        self._waiting.append(token_id)
        text = self._new_text()
        return "" if not text or text.endswith(UNFINISHED) else self._out(text)

    def flush(self) -> str:
        """The text of all that waits, unfinished characters as U+FFFD."""
        return self._out(self._new_text())

    def spell(self, token_ids: Sequence[int]) -> str:
        """The text of these ids as a whole; what was added plays no part."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list only for a list of lists
        return text

    def _new_text(self) -> str:
        """What the waiting ids add behind the last ids that were spelled.

        Both spellings start at the same id, so whatever a tokenizer does at the start of a text (SentencePiece
        drops a leading space there) is done to both and cancels out.
        """
        before = self.spell(self._spelled)
        both = self.spell(self._spelled + self._waiting)
        return both[len(before) :] if both.startswith(before) else self.spell(self._waiting)

    def _out(self, text: str) -> str:
        if text:
            self._spelled = self._waiting
        self._waiting = []
        return text


class StopStringMatcher:
    """Lets text through up to the first stop text, and holds back what may become one.

    Attributes:
        found: The stop text that ended the text; None while there was none.
    """

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self.found: str | None = None
        self._stop_texts = tuple(stop_texts)
        self._held = ""

    @property
    def holds(self) -> bool:
        """Whether there is text that is not out yet."""
        return bool(self._held)

    @property
    def stops(self) -> bool:
        """Whether there is any stop text."""
        return bool(self._stop_texts)

    def is_in(self, text: str) -> bool:
        """Whether `text` has a stop text in it."""
        return any(stop in text for stop in self._stop_texts)

    def add(self, text: str) -> str:
        """What of the text so far is certainly in front of a stop text, and is not out yet."""
        self._held += text
        places = [(place, stop) for stop in self._stop_texts if (place := self._held.find(stop)) >= 0]
        if places:
            end, self.found = min(places, key=lambda found: found[0])
            return self._out(end, dropping_rest=True)
        beginning = max((_overlap(self._held, stop) for stop in self._stop_texts), default=0)
        return self._out(len(self._held) - beginning)

    def flush(self) -> str:
        """What was held back for a stop text that did not come."""
        return self._out(len(self._held))

    def _out(self, end: int, *, dropping_rest: bool = False) -> str:
        text, self._held = self._held[:end], "" if dropping_rest else self._held[end:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:size])), 0)
