"""Tokens one by one, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

MOST_IN_A_CHARACTER = 8
"""An emoji of four bytes and what changes its colour, a token a byte."""


@dataclass(frozen=True)
class Piece:
    """One token.

    Attributes:
        id: Its id, which means something to one tokenizer only.
        text: What it spells inside a text, its space included; of a part of a character, the vocabulary's own name.
    """

    id: int
    text: str


class Pieces:
    """Spells tokens one by one, each as it would be inside a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Behind a word, where SentencePiece keeps the space that it drops at the start of a text.
        self._before = list(tokenizer.encode("a", add_special_tokens=False))
        self._known: dict[int, Piece] = {}

    def of(self, token_id: int) -> Piece:
        """This token."""
        if token_id not in self._known:
            self._known[token_id] = Piece(token_id, self._text(token_id))
        return self._known[token_id]

    def all(self, token_ids: Sequence[int]) -> tuple[Piece, ...]:
        """These tokens."""
        return tuple(self.of(token_id) for token_id in token_ids)

    def row(self, token_ids: Sequence[int]) -> list[str]:
        """What each token of a row spells in its place.

        Where several tokens make one character it stands with the first of them, and the others spell nothing.
        """
        spelled: list[str] = []
        at = 0
        while at < len(token_ids):
            together = self._character(token_ids[at : at + MOST_IN_A_CHARACTER])
            spelled += [together[0], *[""] * (together[1] - 1)]
            at += together[1]
        return spelled

    def _character(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """The text of the first token, or of the first few where fewer would be parts of a character; and how many."""
        for count in range(1, len(token_ids) + 1):
            both = self._decode([*self._before, *token_ids[:count]])
            text = both.removeprefix(self._decode(self._before))
            if text and "\N{REPLACEMENT CHARACTER}" not in text:
                return (self.of(token_ids[0]).text, 1) if count == 1 else (text, count)
        return self.of(token_ids[0]).text, 1

    def _text(self, token_id: int) -> str:
        before, both = self._decode(self._before), self._decode([*self._before, token_id])
        text = both[len(before) :] if both.startswith(before) else self._decode([token_id])
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        return name if isinstance(name, str) else f"<{token_id}>"  # an id beyond the vocabulary has no name

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
