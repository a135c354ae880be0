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
        min_p: Sample among the tokens that are at least this share as likely as the likeliest.
        repetition_penalty: Divides the scores of tokens that are there already: above 1 repeats less; 1 is none.
        stop: Texts that end the answer; those that were saved end it too.
        num_beams: How many answers are followed at once, of which the likeliest is given; 1 is no beam search.
    """

    system: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    num_beams: int | None = None
