"""Control tokens that are written in the text of rows: read as plain text, kept, or refused.

A template's own control tokens are what a model goes by; the same characters in what a person says are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.choices import SpecialTokensInText
from loraft.errors import DataError
from loraft.rows.formats import Message
from loraft.tokenization.boundaries import Span
from loraft.tokenization.content_marks import unused_characters

KEY = "data.special_tokens_in_text"


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """The control tokens of a tokenizer, and what is done with them in the text of rows.

    Attributes:
        tokenizer: The model's.
        setting: `data.special_tokens_in_text`.
    """

    tokenizer: PreTrainedTokenizerBase
    setting: SpecialTokensInText = "text"

    @property
    def as_text(self) -> bool:
        """They are read as plain text."""
        return self.setting != "keep"

    @property
    def recorded(self) -> Mapping[str, str]:
        """What is saved beside the weights of it: nothing where it is the default."""
        return {} if self.setting == "text" else {"special_tokens_in_text": self.setting}

    def found_in(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Those that are written in `texts`."""
        return tuple(dict.fromkeys(found for text in texts for found in self._pattern.findall(text)))

    def findings(self, texts: Iterable[str]) -> tuple[str, ...]:
        """What there is to say of those in `texts`."""
        return tuple(self._finding(token) for token in self.found_in(texts))

    def refuse(self, texts: Iterable[str]) -> None:
        """Refuse those in `texts` where the setting is `error`.

        Raises:
            DataError: There is one.
        """
        if self.setting == "error" and (found := self.found_in(texts)):
            raise DataError(
                f"the control token {found[0]} is written in the text",
                key=KEY,
                remedy="take it out; or write text, which reads it as plain text, or keep",
            )

    def protected(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Protected:
        """A conversation with a mark before each control token that is to be read as text.

        Raises:
            DataError: There is one, and the setting is `error`.
        """
        texts = list(_texts([[message.content, message.more] for message in messages])) + list(_texts(tools))
        self.refuse(texts)
        findings = self.findings(texts)
        if not findings or not self.as_text:
            return Protected(tuple(messages), tuple(tools), findings=findings)
        (mark,) = unused_characters("".join(texts))

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                return self._pattern.sub(lambda found: mark + found[0], value)
            if isinstance(value, Mapping):
                return {key: marked(each) for key, each in value.items()}
            return [marked(each) for each in value] if isinstance(value, list | tuple) else value

        said = (replace(each, content=marked(each.content), more=marked(each.more)) for each in messages)
        return Protected(tuple(said), tuple(marked(tools)), re.compile(f"{mark}({self._pattern.pattern})?"), findings)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted({token for token in added | set(self.tokenizer.all_special_tokens) if token.strip()})
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _finding(self, token: str) -> str:
        if self.setting == "keep":
            return f"the control token {token} is written in the text, and is read as that token ({KEY}: keep)"
        ids: Any = self.tokenizer(token, add_special_tokens=False, split_special_tokens=True, verbose=False)
        if self.tokenizer.convert_tokens_to_ids(token) in ids["input_ids"]:
            return (
                f"the control token {token} is written in the text, and the tokenizer cannot read it as plain text: "
                f"it stays that token; {KEY}: error refuses such rows"
            )
        return f"the control token {token} is written in the text, and is read as plain text; {KEY}: keep keeps it"


@dataclass(frozen=True)
class Protected:
    """A conversation in which a mark stands before each control token that a person wrote.

    Attributes:
        messages: Its messages.
        tools: Its tools.
        written: What finds such a token with its mark; None where there is none.
        findings: What there is to say, a sentence each.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    written: re.Pattern[str] | None = None
    findings: tuple[str, ...] = ()

    def unmarked(self, text: str, places: Sequence[int]) -> tuple[str, list[int], tuple[Span, ...]]:
        """A rendering without the marks: the text, where `places` are in it, and the control tokens that are text."""
        if self.written is None:
            return text, list(places), ()
        marks = list(self.written.finditer(text))
        starts = [found.start() for found in marks]
        literal = tuple(
            (found.start() - before, found.start() - before + len(found[1] or "")) for before, found in enumerate(marks)
        )
        moved = [place - sum(start < place for start in starts) for place in places]
        return self.written.sub(lambda found: found[1] or "", text), moved, literal


def _texts(value: Any) -> Iterable[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
