"""What there is to say about the rows: counts, lengths, and what is trained. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["DataReport", "Lengths", "SourceCounts", "lengths_of"]


@dataclass
class SourceCounts:
    """What became of the rows of one source.

    Attributes:
        source: Its path.
        format: The format of its rows.
        read: Rows in it.
        bad: Rows that cannot be used and were skipped (`data.on_bad_row: skip`).
        overlength: Rows longer than `data.max_length`.
        done: What was done with those: dropped, truncated or split.
        untrained: Rows left out because no token of theirs is trained.
        kept: Rows, or pieces of split ones, that can be used.
    """

    source: str
    format: str
    read: int = 0
    bad: int = 0
    overlength: int = 0
    done: str = "–"
    untrained: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Lengths:
    """The lengths of rows in tokens, before any is dropped, truncated or split.

    Attributes:
        keeps_99_percent: The `data.max_length` that 99 of 100 rows fit in.
    """

    shortest: int
    median: int
    p90: int
    keeps_99_percent: int
    longest: int


@dataclass(frozen=True)
class DataReport:
    """The rows of a run, in numbers.

    Attributes:
        train_rows: Rows to train on.
        eval_rows: Rows to evaluate on.
        tokens: Tokens of the rows to train on.
        trained_tokens: Those that the loss is computed on.
        length: Lengths of the training rows in tokens.
        max_length: The setting that they are compared with.
        sources: What became of the rows of each source.
        samples: Three rows as the model sees them, the trained part in ⟦ ⟧.
        notes: What was found, a sentence each.
    """

    train_rows: int
    eval_rows: int
    tokens: int
    trained_tokens: int
    length: Lengths
    max_length: int
    sources: Sequence[SourceCounts]
    samples: Sequence[dict[str, str]]
    notes: tuple[str, ...] = field(default=())

    @property
    def trained_share(self) -> float:
        """The share of tokens that the loss is computed on."""
        return self.trained_tokens / self.tokens

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON shows it."""
        values = {key: value for key, value in asdict(self).items() if key != "notes"}
        share = {"trained_share": self.trained_share}
        return (
            {key: values.pop(key) for key in ("train_rows", "eval_rows", "tokens", "trained_tokens")} | share | values
        )


def lengths_of(lengths: Sequence[int]) -> Lengths:
    """The quantiles of `lengths`, each the length of a real row (`method="higher"`)."""
    quantiles = np.quantile(np.asarray(lengths), [0, 0.5, 0.9, 0.99, 1], method="higher")
    return Lengths(*(int(value) for value in quantiles))
