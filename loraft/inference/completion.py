"""One answer: what it is when whole, how it grows token by token, and where two of them part."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraft.errors import ConfigError
from loraft.inference.requests import GenerationRequest
from loraft.inference.sampling import SamplingParams
from loraft.tokenization.boundaries import Piece

CutBy = Literal["limit", "positions"]
EndedBy = Literal["stop_id", "stop_text", CutBy]
FinishReason = Literal["stop", "length"]
FINISH_REASONS: Mapping[EndedBy, FinishReason] = {
    "stop_id": "stop", "stop_text": "stop", "limit": "length", "positions": "length",
}  # fmt: skip
"""What a `Completion` says of why an answer ended."""


def count_cut(endings: Iterable[EndedBy]) -> tuple[int, int]:
    """How many answers were cut, and how many of these where the model's positions end: no larger limit helps there."""
    at_positions = (ends := Counter(endings))["positions"]
    return ends["limit"] + at_positions, at_positions


@dataclass(frozen=True)
class Finish:
    """Why an answer ended: at a stop id, a stop text, the limit that was set, or the end of a position table."""

    by: EndedBy
    token_id: int | None = None
    text: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Completion:
    """One answer, whole.

    Attributes:
        prompt: The prompt as the model read it, special tokens spelled out.
        completion: The text of the answer, special tokens skipped, in front of a stop text.
        token_ids: The tokens of the answer, without the stop id; with those that spelled a stop text.
        logprobs: One a token: natural logarithm, under the model, before the sampling rules.
        finish_reason: "stop" at a stop id or a stop text, "length" at a limit.
        ended_by: Which of them it was.
        prefill_ms: Milliseconds until the first token was chosen.
        decode_tokens_per_second: The rate after the first token, of this row alone; None where no step followed.
    """

    prompt: str
    completion: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    ended_by: EndedBy
    prefill_ms: float
    decode_tokens_per_second: float | None


@dataclass
class PartialCompletion:
    """An answer while it grows: its tokens, and what each made readable; of a stop id the seconds alone.

    Attributes:
        limited_by: What its limit is: the one that was set, or as many tokens as there are positions for.
    """

    prompt_ids: Sequence[int]
    limit: int
    rules: SamplingParams
    stop_ids: frozenset[int]
    detokenizer: Detokenizer
    generator: torch.Generator = field(default_factory=torch.Generator)
    text_end: StopStringMatcher = field(default_factory=lambda: StopStringMatcher(()))
    limited_by: CutBy = "limit"
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ending: Finish | None = None

    @property
    def waits(self) -> bool:
        """Whether it has text that is not out yet: an unfinished character, or what may become a stop text."""
        return bool(self.detokenizer.waiting or self.text_end.held)

    @property
    def is_cut(self) -> bool:
        """Whether the limit allows one token more, which the rules then force."""
        return bool(self.rules.last) and len(self.token_ids) == self.limit - 1

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, as its `Completion` says it; None until it has."""
        return None if self.ending is None else FINISH_REASONS[self.ending.by]

    def take(self, token_id: int, logprob: float, seconds: float, *, is_cut: bool) -> None:
        """Take the token of one step; where the limit forced it (`is_cut`), a stop id is no word of the model's."""
        self.seconds.append(seconds)
        if token_id in self.stop_ids:
            self.ending = Finish(self.limited_by, limit=self.limit) if is_cut else Finish("stop_id", token_id=token_id)
        else:
            self.token_ids.append(token_id)
            self.logprobs.append(logprob)
            self.pieces.append(self.text_end.add(self.detokenizer.add(token_id)))
            if self.text_end.found is not None:
                self.ending = Finish("stop_text", text=self.text_end.found)
                return
            if len(self.token_ids) == self.limit:
                self.ending = Finish(self.limited_by, limit=self.limit)
        if self.ending is not None and self.waits:
            self.pieces[-1] += self.text_end.add(self.detokenizer.flush()) + self.text_end.flush()

    def completion(self) -> Completion:
        """The answer, once it has ended."""
        ending = self.ending
        assert ending is not None
        decode_seconds = sum(self.seconds[1:])
        return Completion(
            prompt=self.detokenizer.spell(self.prompt_ids, skips_special=False),
            completion="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=FINISH_REASONS[ending.by],
            ended_by=ending.by,
            prefill_ms=self.seconds[0] * 1000,
            decode_tokens_per_second=(len(self.seconds) - 1) / decode_seconds if decode_seconds else None,
        )


@dataclass(frozen=True)
class Token:
    """One token of an answer, as it comes; its text is empty while a character is unfinished."""

    id: int
    text: str
    logprob: float
    index: int


class TokenStream(Iterator[Token]):
    """The tokens of one answer, as they come."""

    def __init__(self, tokens: Generator[Token, None, Completion]) -> None:
        self._tokens = tokens
        self._completion: Completion | None = None

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except StopIteration as end:
            self._completion = self._completion or end.value
            raise StopIteration from None

    def stop(self) -> None:
        """End the answer here, and give the model back."""
        self._tokens.close()


class Stream(TokenStream):
    """The tokens of one answer, then `completion`; until then, or `stop`, the model stays in `ordinary_attention`."""

    def __init__(self, answer: PartialCompletion, tokens: Generator[Token, None, Completion]) -> None:
        super().__init__(tokens)
        self._answer = answer

    @property
    def ending(self) -> Finish | None:
        """Why the answer ended; None until it has."""
        return self._answer.ending

    @property
    def completion(self) -> Completion:
        """The whole answer; what is left of it is generated first."""
        deque(self, maxlen=0)
        if self._completion is None:
            raise ValueError("the stream was stopped before its end")
        return self._completion


def stop_texts_of(defaults: GenerationConfig | None, options: GenerationRequest) -> tuple[str, ...]:
    """The texts that end an answer: the caller's, and those that were saved; an empty one would end every answer."""
    saved: Any = defaults.stop_strings if defaults is not None else None
    texts = tuple(dict.fromkeys([*options.stop, *([saved] if isinstance(saved, str) else saved or ())]))
    if "" in texts:
        raise ConfigError("must not be empty", key="stop", remedy="Name the text that ends an answer.")
    return texts


class Detokenizer:
    """Turns ids into text one by one; those that are `waiting` have none yet.

    The pieces of `add`, and at the end of `flush`, make up `tokenizer.decode` of all ids (special tokens skipped,
    spaces not cleaned up). The one exception: where the ids end inside a character of byte tokens, some tokenizers
    then spell the finished characters before it as broken too; here they stay whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._spelled: list[int] = []
        self.waiting: list[int] = []

    def add(self, token_id: int) -> str:
        """The text that `token_id` makes readable; empty while a character is unfinished."""
        self.waiting.append(token_id)
        text = self._new_text()
        return "" if not text or text.endswith("\N{REPLACEMENT CHARACTER}") else self._out(text)

    def flush(self) -> str:
        """The text of all that waits, unfinished characters as U+FFFD."""
        return self._out(self._new_text())

    def spell(self, token_ids: Sequence[int], *, skips_special: bool = True) -> str:
        """The text of these ids as a whole; what was added plays no part."""
        how = {"skip_special_tokens": skips_special, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(token_ids), **how))

    def _new_text(self) -> str:
        """What the waiting ids add behind the last ids that were spelled.

        Both spellings start at the same id, so whatever a tokenizer does at the start of a text (SentencePiece
        drops a leading space there) is done to both and cancels out.
        """
        before = self.spell(self._spelled)
        both = self.spell(self._spelled + self.waiting)
        return both[len(before) :] if both.startswith(before) else self.spell(self.waiting)

    def _out(self, text: str) -> str:
        if text:
            self._spelled = self.waiting
        self.waiting = []
        return text


class StopStringMatcher:
    """Lets text through up to the first stop text, which is then `found`; what may become one is `held` back."""

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self.stop_texts = tuple(stop_texts)
        self.found: str | None = None
        self.held = ""

    def add(self, text: str) -> str:
        """What of the text so far is certainly in front of a stop text, and is not out yet."""
        whole = self.held + text
        places = [(place, stop) for stop in self.stop_texts if (place := whole.find(stop)) >= 0]
        if places:
            end, self.found = min(places, key=lambda found: found[0])
            self.held = ""
        else:  # the longest end that is the beginning of a stop text is held
            ends = (end for end in range(len(whole)) if any(stop.startswith(whole[end:]) for stop in self.stop_texts))
            end = next(ends, len(whole))
            self.held = whole[end:]
        return whole[:end]

    def flush(self) -> str:
        """What was held back for a stop text that did not come."""
        text, self.held = self.held, ""
        return text


@dataclass(frozen=True)
class Speed:
    """How fast an answer came, as its `Completion` says it."""

    prefill_ms: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class LogprobDifference:
    """Where two answers part: the place, from 0, and the token of each there; None where it has ended."""

    index: int
    with_cache: Piece | None
    without_cache: Piece | None


@dataclass(frozen=True)
class CacheComparison:
    """One answer, made in both ways."""

    same_tokens: bool
    first_difference: LogprobDifference | None
    with_cache: Speed
    without_cache: Speed


def compare_cache(cached: Completion, uncached: Completion, piece: Callable[[int], Piece]) -> CacheComparison:
    """Compare an answer made with a cache with one made without; `piece` spells a token."""
    pairs = enumerate(zip_longest(cached.token_ids, uncached.token_ids))
    apart = next(((index, *pair) for index, pair in pairs if pair[0] != pair[1]), None)
    difference = None
    if apart is not None:
        index, *ids = apart
        difference = LogprobDifference(index, *(None if token_id is None else piece(token_id) for token_id in ids))
    speeds = (Speed(each.prefill_ms, each.decode_tokens_per_second) for each in (cached, uncached))
    return CacheComparison(difference is None, difference, *speeds)
