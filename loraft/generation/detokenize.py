"""Text from tokens as they come.

This module knows that one token is not one text: a character may be spread over several tokens, and a piece may
spell differently at the start of a text than inside it. It refuses to know models.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

__all__ = ["Detokenizer"]

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

    def _new_text(self) -> str:
        """What the waiting ids add behind the last ids that were spelled.

        Both spellings start at the same id, so whatever a tokenizer does at the start of a text (SentencePiece
        drops a leading space there) is done to both and cancels out.
        """
        before = self._decode(self._spelled)
        both = self._decode(self._spelled + self._waiting)
        return both[len(before) :] if both.startswith(before) else self._decode(self._waiting)

    def _out(self, text: str) -> str:
        if text:
            self._spelled = self._waiting
        self._waiting = []
        return text

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list only for a list of lists
        return text
