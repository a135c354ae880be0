"""What a caller may say of an answer, as a plain value.

This module knows names and that nothing need be said. It refuses to know what each means (`sampling`, `engine`), and
it is light, so that the command line makes one before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AnswerOptions"]


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is made; whatever is None is as it was saved with the adapter, or as the base has it.

    Attributes:
        system: The system prompt.
        max_new_tokens: The most tokens of an answer.
        temperature: 0 is greedy.
        top_p: Sample among the likeliest that hold this probability.
        top_k: Sample among this many of the likeliest tokens.
        seed: The seed of sampling; None is another one each time.
    """

    system: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
