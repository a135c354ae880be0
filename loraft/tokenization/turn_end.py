"""What a chat template prints where a turn of the assistant ends, and the control tokens in what it prints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from loraft.figures import shared_beginning
from loraft.tokenization.content_marks import APART, any_of


@dataclass(frozen=True)
class TurnEnd:
    """How turns of the assistant end.

    Attributes:
        tokens: Finds the control tokens in a text.
        longest: The characters of the longest of them.
        text: What is printed behind the content, from its first token to its last; None where there is none.
        of_last: The last turn ends with it too, and not those alone that more follows.
        of_call: What a tool's answer begins with: where the last turn has no end, it ends a call as `text` an answer.
    """

    tokens: re.Pattern[str]
    longest: int
    text: str | None = None
    of_last: bool = True
    of_call: str | None = None

    @classmethod
    def unknown(cls, tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
        """No end, and the control tokens of a tokenizer."""
        tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        return cls(any_of(tokens), max(map(len, tokens), default=0))

    def found(self, last: str, earlier: str, end_of_text: str | None) -> TurnEnd:
        """The end, from what is printed behind the `last` answer, and behind an `earlier` one, its question included.

        What stands behind both is their end: to its last token where nothing else is behind the last one, or else to
        the end of text. Where neither is, it is the first token behind the last one, or behind the earlier.
        """
        last = last.rstrip()
        both = last[: shared_beginning(last, earlier)]
        ends = [token.end() for token in self.tokens.finditer(both) if both == last or token[0] == end_of_text]
        if ends:
            return replace(self, text=both[: ends[-1 if both == last else 0]].lstrip())
        if first := self._first(last.lstrip()):
            return replace(self, text=first)
        return replace(self, text=first, of_last=False) if (first := self._first(earlier)) else self

    def found_of_call(self, call: str, answered: str) -> TurnEnd:
        """The same with the first token of what is printed of a tool's answer behind a `call`."""
        call = call.rstrip()
        return replace(self, of_call=self._first(answered.removeprefix(call)) if answered.startswith(call) else None)

    def _first(self, text: str) -> str | None:
        """The token that a text begins with, and white space before it."""
        found = self.tokens.match(text, len(text) - len(text.lstrip()))
        return text[: found.end()] if found else None

    def closing(self, *, calls: bool) -> str:
        """What ends the last turn and the template does not print: whoever speaks next begins with it."""
        return "" if self.of_last else (self.of_call if calls else self.text) or ""

    @cached_property
    def stop_token(self) -> str | None:
        """The token that ends a turn: the last of its end, for those before it may stand inside a turn too."""
        return self._last_token(self.text)

    @cached_property
    def stop_token_of_call(self) -> str | None:
        """The token that ends a call, where that is another."""
        return self._last_token(self.of_call)

    def _last_token(self, text: str | None) -> str | None:
        return self.tokens.findall(text)[-1] if text is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about it, a sentence each."""
        if self.text is None:
            return ("the chat template prints no token after an answer: the model does not learn to stop",)
        if not self.of_last:
            behind = f"the chat template prints {self.text!r} only behind an answer that more follows"
            return (f"{behind}: it is put behind the last one of a row too, which teaches the model to stop",)
        return ()

    def behind(self, text: str, content_end: int) -> int:
        """The end of the turn whose content ends at `content_end`, which is that itself where no end follows it."""
        ends = "|".join(re.escape(end.lstrip()) for end in (self.text, self.of_call) if end)
        found = re.compile(rf"\s*(?:{ends or '(?!)'})").match(text, content_end)
        return found.end() if found else content_end

    def findings(self, text: str, ends: Iterable[int]) -> list[str]:
        """What there is to say of answers in `text` that end otherwise than the last one."""
        if self.text is None or not self.of_last:
            return []
        if all(text.endswith(self.text, 0, end) for end in ends):
            return []
        return [f"an answer that more follows does not end with {self.text!r}, and its end is not trained: {APART}"]

    def token_start(self, text: str, at: int) -> int:
        """`at`, or where the control token begins that it is inside of."""
        near = self.tokens.finditer(text, max(at - self.longest, 0), at + self.longest)
        return next((token.start() for token in near if token.start() < at < token.end()), at)
