"""A row as tokens, as each task has it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IGNORED", "TOKENIZED_TOGETHER", "Example", "LabelledExample", "PairExample"]

IGNORED = -100
"""The label of a token that is not trained."""
TOKENIZED_TOGETHER = 1000
"""Texts in one call of a tokenizer, which reads them in parallel."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row as tokens.

    Attributes:
        input_ids: Its tokens.
        labels: The same where a token is trained, else -100.
        where: The row's place.
    """

    input_ids: list[int]
    labels: list[int]
    where: str

    @property
    def trained(self) -> int:
        """How many tokens are trained; the first of a row never is, since nothing predicts it."""
        return len(self.labels) - self.labels.count(IGNORED) - (self.labels[:1] not in ([], [IGNORED]))

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """A source and its target as tokens.

    Attributes:
        input_ids: The source's tokens, which the encoder reads.
        labels: The target's tokens; all are trained, the first one too.
        where: The row's place.
    """

    @property
    def trained(self) -> int:
        """How many tokens are trained: the target's."""
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """How many tokens the encoder and the decoder read."""
        return len(self.input_ids) + len(self.labels)


@dataclass(frozen=True, slots=True)
class LabelledExample(Example):
    """A text as tokens, with its class.

    Attributes:
        input_ids: The text's tokens, or those of a pair.
        labels: The number of its class, alone.
        where: The row's place.
        token_type_ids: 0 for the tokens of the first text and 1 for those of the second, where the model tells them
            apart; else None.
    """

    token_type_ids: list[int] | None = None

    @property
    def trained(self) -> int:
        """How many decisions are trained: one."""
        return len(self.labels)
