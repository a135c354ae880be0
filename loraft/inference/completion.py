"""One answer: what it is when whole, and how it grows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraft.errors import ConfigError
from loraft.inference.detokenize import Detokenizer, StopStringMatcher
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
