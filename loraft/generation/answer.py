"""One answer: what it is when whole, and how it grows token by token.

This module knows how tokens become text and numbers of an answer, and when it ends. It refuses to know how tokens
are computed and chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from loraft.generation.detokenize import Detokenizer

__all__ = ["Completion", "FinishReason", "GrowingAnswer"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One answer, whole.

    Attributes:
        prompt: The prompt as the model read it, special tokens spelled out.
        completion: The text of the answer, special tokens skipped.
        token_ids: The tokens of the answer, without the stop id.
        logprobs: One a token: natural logarithm, under the model, before the sampling rules.
        finish_reason: "stop" at a stop id, "length" at a limit.
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
class GrowingAnswer:
    """An answer while it grows.

    Attributes:
        prompt_ids: What it answers.
        limit: The most tokens it may have.
        detokenizer: Spells its tokens.
        generator: Draws its tokens, and no other's.
        token_ids: Its tokens so far, without the stop id.
        logprobs: One a token.
        pieces: One a token: the text that became readable with it.
        seconds: One a step, that of the stop id included.
        finish_reason: None until it has ended.
    """

    prompt_ids: Sequence[int]
    limit: int
    detokenizer: Detokenizer
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, token_id: int, logprob: float, seconds: float, stop_ids: frozenset[int]) -> None:
        """Take the token of one step, which took `seconds`; whatever still waits is spelled when it is the last."""
        self.seconds.append(seconds)
        if token_id in stop_ids:
            self.finish_reason = "stop"
            if self.detokenizer.waits:
                self.pieces[-1] += self.detokenizer.flush()
            return
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.pieces.append(self.detokenizer.add(token_id))
        if len(self.token_ids) == self.limit:
            self.finish_reason = "length"
            self.pieces[-1] += self.detokenizer.flush()

    def completion(self, tokenizer: PreTrainedTokenizerBase) -> Completion:
        """The answer, once it has ended."""
        assert self.finish_reason is not None
        decode_seconds = sum(self.seconds[1:])
        return Completion(
            prompt=str(tokenizer.decode(list(self.prompt_ids), clean_up_tokenization_spaces=False)),
            completion="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            prefill_ms=self.seconds[0] * 1000,
            decode_tokens_per_second=(len(self.seconds) - 1) / decode_seconds if decode_seconds else None,
        )
