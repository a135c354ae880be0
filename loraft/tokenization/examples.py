"""A row as tokens."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100
"""The label of a token that is not trained."""
TOKENIZED_TOGETHER = 1000
"""Texts in one call of a tokenizer, which reads them in parallel."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row, or a piece of one, as tokens. What its labels are is its task's to say.

    Attributes:
        input_ids: The tokens that the model reads, an encoder-decoder with its encoder.
        labels: Of a text the same tokens where they are trained, else -100; of a pair the tokens of the target; of a
            classified text the number of its class, alone.
        where: The row's place.
        trained: How many tokens are trained, or decisions.
        tokens: How many tokens the model reads, those of a target too.
        token_type_ids: 0 for the tokens of the first text and 1 for those of the second, where a classifier tells them
            apart; else None.
    """

    input_ids: list[int]
    labels: list[int]
    where: str
    trained: int
    tokens: int
    token_type_ids: list[int] | None = None

    @property
    def target_tokens(self) -> int:
        """How many tokens a target has that the model reads besides: none of a text."""
        return self.tokens - len(self.input_ids)

    @classmethod
    def of_text(cls, ids: list[int], labels: list[int], where: str) -> Example:
        """A text; the first token is never trained, since nothing predicts it."""
        trained = len(labels) - labels.count(IGNORED) - (labels[:1] not in ([], [IGNORED]))
        return cls(ids, labels, where, trained, len(ids))

    @classmethod
    def of_pair(cls, source: list[int], target: list[int], where: str) -> Example:
        """A source and its target, of which every token is trained, the first one too."""
        return cls(source, target, where, len(target), len(source) + len(target))

    @classmethod
    def of_class(cls, ids: list[int], number: int, where: str, types: list[int] | None = None) -> Example:
        """A text, or two in one, with the number of its class."""
        return cls(ids, [number], where, 1, len(ids), types)
