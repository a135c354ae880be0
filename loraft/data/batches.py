"""From examples to batches: which rows share a batch, in which order, and how they are laid.

This module knows order and layout. The order is a pure function of the seed and the epoch, so that a place in
the data is two numbers. It refuses to know the model: a batch says which hidden states predict which tokens.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["IGNORED", "LENGTH_GROUP", "Batch", "BatchPlan", "Layout", "Span", "Tokens", "collate", "pack_rows"]

T = TypeVar("T")
IGNORED = -100
LENGTH_GROUP = 50
"""How many batches are sorted by length together: enough to cut padding, few enough to keep the order random."""


class Tokens(Protocol):
    """What a batch needs of an example."""

    @property
    def input_ids(self) -> list[int]:
        """Its tokens."""

    @property
    def labels(self) -> list[int]:
        """The same where a token is trained, else `IGNORED`."""


class Span(Protocol):
    """The examples `start … stop - 1` of one source, seen `weight` times an epoch."""

    @property
    def start(self) -> int:
        """The first example."""

    @property
    def stop(self) -> int:
        """The example after the last."""

    @property
    def weight(self) -> float:
        """How often an epoch sees each."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a batch are laid.

    Attributes:
        packed: End to end in one line without padding; otherwise a line each, padded on the right.
        pad_id: The token at padded positions; no real token attends to one and none is trained.
        multiple_of: A line of rows end to end is filled to a multiple of this many tokens by one more row, of padding,
            where new lengths cost time.
    """

    packed: bool
    pad_id: int
    multiple_of: int = 1


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them.

    Attributes:
        input_ids: `[lines, time]`.
        position_ids: `[lines, time]`, from 0 in each row.
        row_lengths: The lengths of the rows that lie end to end in the one line, that of padding too; None where each
            line is a row.
        target_positions: `[targets]`, places in the flattened `[lines · time]` whose hidden state predicts a target.
        target_ids: `[targets]`, the tokens to predict.
        tokens: The number of real tokens, padding left out.
    """

    input_ids: Tensor
    position_ids: Tensor
    row_lengths: tuple[int, ...] | None
    target_positions: Tensor
    target_ids: Tensor
    tokens: int

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        moved = (t.to(device, non_blocking=True) for t in (self.input_ids, self.position_ids))
        targets = (t.to(device, non_blocking=True) for t in (self.target_positions, self.target_ids))
        input_ids, position_ids = moved
        positions, ids = targets
        return Batch(input_ids, position_ids, self.row_lengths, positions, ids, self.tokens)


def collate(examples: Sequence[Tokens], layout: Layout) -> Batch:
    """Lay `examples` as `layout` says.

    The first token of a row is never a target: nothing in its row predicts it.
    """
    lengths = [len(example.input_ids) for example in examples]
    padding = -sum(lengths) % layout.multiple_of if layout.packed else 0
    width = sum(lengths) + padding if layout.packed else max(lengths)
    input_ids = torch.full((1 if layout.packed else len(examples), width), layout.pad_id)
    position_ids = torch.zeros_like(input_ids)
    starts = np.cumsum([0, *lengths[:-1]]).tolist() if layout.packed else [i * width for i in range(len(examples))]
    targets: list[int] = []
    target_ids: list[int] = []
    for start, length, example in zip(starts, lengths, examples, strict=True):
        input_ids.view(-1)[start : start + length] = torch.tensor(example.input_ids)
        position_ids.view(-1)[start : start + length] = torch.arange(length)
        trained = [place for place in range(1, length) if example.labels[place] != IGNORED]
        targets += [start + place - 1 for place in trained]
        target_ids += [example.labels[place] for place in trained]
    if padding:
        position_ids.view(-1)[-padding:] = torch.arange(padding)
    return Batch(
        input_ids,
        position_ids,
        (*lengths, *([padding] if padding else [])) if layout.packed else None,
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(target_ids, dtype=torch.long),
        sum(lengths),
    )


@dataclass(frozen=True)
class BatchPlan:
    """Which examples share a batch, epoch by epoch.

    Attributes:
        lengths: The number of tokens of every example.
        spans: The sources, in order, with their weights.
        batch_size: Rows in a batch; filled rows where `fill_to` is set.
        accumulation: Batches in an optimizer step.
        seed: The run's seed.
        group_by_length: Put rows of like length into one batch.
        fill_to: Fill rows up to this many tokens with examples; None leaves each example a row of its own.
    """

    lengths: Sequence[int]
    spans: Sequence[Span]
    batch_size: int
    accumulation: int
    seed: int
    group_by_length: bool = False
    fill_to: int | None = None

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of epoch `number` (from 0), each a list of examples."""
        random = np.random.Generator(np.random.PCG64([self.seed, number]))
        order = random.permutation(self._drawn(random)).tolist()
        if self.fill_to is not None:
            filled = pack_rows([self.lengths[i] for i in order], self.fill_to)
            rows = [[order[place] for place in row] for row in filled]
            rows = [rows[i] for i in random.permutation(len(rows))]
            return [[i for row in chunk for i in row] for chunk in _chunks(rows, self.batch_size)]
        if not self.group_by_length:
            return _chunks(order, self.batch_size)
        grouped: list[list[int]] = []
        for chunk in _chunks(order, self.batch_size * LENGTH_GROUP):
            grouped += _chunks(sorted(chunk, key=lambda i: -self.lengths[i]), self.batch_size)
        return [grouped[i] for i in random.permutation(len(grouped))]

    def steps(self, number: int) -> int:
        """The optimizer steps of epoch `number`; the last one may have fewer batches."""
        drawn = sum(_times(span) for span in self.spans)
        batches = len(self.epoch(number)) if self.fill_to is not None else math.ceil(drawn / self.batch_size)
        return math.ceil(batches / self.accumulation)

    def _drawn(self, random: np.random.Generator) -> list[int]:
        """Each example as often as its source's weight says; a fraction draws that share of them."""
        drawn: list[int] = []
        for span in self.spans:
            size = span.stop - span.start
            whole, rest = divmod(_times(span), size) if size else (0, 0)
            drawn += list(range(span.start, span.stop)) * whole
            drawn += (span.start + random.permutation(size)[:rest]).tolist()
        return drawn


def _times(span: Span) -> int:
    """How many rows an epoch draws from a source."""
    return round(span.weight * (span.stop - span.start))


def _chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill rows of `capacity` tokens with examples, longest first, each into the fullest row that takes it.

    Args:
        lengths: The tokens of each example, none above `capacity`.
        capacity: The tokens of a row.

    Returns:
        The rows, each the places of its examples in `lengths`; every place stands once.

    Source: best-fit decreasing; Ding et al. 2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830).
    """
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(by_room, (lengths[place], -1))
        if at == len(by_room):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = by_room.pop(at)
        rows[row].append(place)
        bisect.insort(by_room, (room - lengths[place], row))
    return rows
