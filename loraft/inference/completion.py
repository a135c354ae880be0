"""One answer: what it is when whole, how it grows token by token, and the text of tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraft.errors import ConfigError
from loraft.inference.requests import GenerationRequest

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Finish:
    """Why an answer ended.

    Attributes:
        by: A stop id, a stop text, or a limit: the one that was set, or the end of the model's position table.
        token_id: The stop id.
        text: The stop text.
        limit: How many tokens the limit allowed.
    """

    by: Literal["stop_id", "stop_text", "limit"]
    token_id: int | None = None
    text: str | None = None
    limit: int | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """In a word, as others say it."""
        return "length" if self.by == "limit" else "stop"


@dataclass(frozen=True)
class Completion:
    """One answer, whole.

    Attributes:
        prompt: The prompt as the model read it, special tokens spelled out.
        completion: The text of the answer, special tokens skipped, in front of a stop text.
        token_ids: The tokens of the answer, without the stop id; with those that spelled a stop text.
        logprobs: One a token: natural logarithm, under the model, before the sampling rules.
        finish_reason: "stop" at a stop id or a stop text, "length" at a limit.
        prefill_ms: Milliseconds until the first token was chosen.
        decode_tokens_per_second: The rate after the first token, of this row alone; None where no step followed.
    """

    prompt: str
    completion: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prefill_ms: float
    decode_tokens_per_second: float | None


@dataclass
class PartialCompletion:
    """An answer while it grows.

    Attributes:
        prompt_ids: What it answers.
        limit: The most tokens it may have.
        detokenizer: Spells its tokens.
        generator: Draws its tokens, and no other's.
        text_end: Ends its text at a stop text.
        token_ids: Its tokens so far, without the stop id.
        logprobs: One a token.
        pieces: One a token: the text that became readable with it.
        seconds: One a step, that of the stop id included.
        ending: None until it has ended.
    """

    prompt_ids: Sequence[int]
    limit: int
    detokenizer: Detokenizer
    generator: torch.Generator
    text_end: StopStringMatcher = field(default_factory=lambda: StopStringMatcher(()))
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ending: Finish | None = None

    @property
    def waits(self) -> bool:
        """Whether it has text that is not out yet: an unfinished character, or what may become a stop text."""
        return self.detokenizer.waits or self.text_end.holds

    @property
    def is_at_end(self) -> bool:
        """Whether the limit allows one token more."""
        return len(self.token_ids) == self.limit - 1

    def is_stopped_by(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens would hold a stop text."""
        return self.text_end.stops and self.text_end.is_in(self.detokenizer.spell(token_ids))

    def take(
        self, token_id: int, logprob: float, seconds: float, stop_ids: frozenset[int], *, is_cut: bool = False
    ) -> None:
        """Take the token of one step; whatever still waits is spelled when it is the last.

        Args:
            token_id: The token.
            logprob: Its natural log-probability under the model.
            seconds: How long the step took.
            stop_ids: The ids that end an answer.
            is_cut: The token was forced by the limit: a stop id is then no word of the model's.
        """
        self.seconds.append(seconds)
        if token_id in stop_ids:
            self.ending = Finish("limit", limit=self.limit) if is_cut else Finish("stop_id", token_id=token_id)
            self._flush()
            return
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.pieces.append(self.text_end.add(self.detokenizer.add(token_id)))
        if self.text_end.found is not None:
            self.ending = Finish("stop_text", text=self.text_end.found)
        elif len(self.token_ids) == self.limit:
            self.ending = Finish("limit", limit=self.limit)
            self._flush()

    def _flush(self) -> None:
        if self.waits:
            self.pieces[-1] += self.text_end.add(self.detokenizer.flush())
            self.pieces[-1] += self.text_end.flush()

    def completion(self, tokenizer: PreTrainedTokenizerBase) -> Completion:
        """The answer, once it has ended."""
        assert self.ending is not None
        decode_seconds = sum(self.seconds[1:])
        return Completion(
            prompt=str(tokenizer.decode(list(self.prompt_ids), clean_up_tokenization_spaces=False)),
            completion="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.ending.finish_reason,
            prefill_ms=self.seconds[0] * 1000,
            decode_tokens_per_second=(len(self.seconds) - 1) / decode_seconds if decode_seconds else None,
        )


def stop_texts_of(defaults: GenerationConfig | None, options: GenerationRequest) -> tuple[str, ...]:
    """The texts that end an answer: the caller's, and those that were saved.

    Raises:
        ConfigError: One of them is empty: it would end every answer before its first token.
    """
    saved: Any = defaults.stop_strings if defaults is not None else None
    listed = [saved] if isinstance(saved, str) else list(saved or ())
    texts = tuple(dict.fromkeys([*options.stop, *listed]))
    if "" in texts:
        raise ConfigError("must not be empty", key="stop", remedy="Name the text that ends an answer.")
    return texts


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
