"""From examples to batches: which rows share a batch, in which order, and how they are laid.

The order is a pure function of the seed and the epoch, so that a place in the data is two numbers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from loraft.tokenization.examples import IGNORED, Example, LabelledExample, PairExample

__all__ = [
    "LENGTH_GROUP",
    "AnyBatch",
    "Batch",
    "BatchLayout",
    "BatchSampler",
    "LabelledBatch",
    "PairBatch",
    "Span",
    "StepBatches",
    "collate",
    "collate_labelled",
    "collate_pairs",
    "collate_rows",
    "pack_rows",
]  # fmt: skip

T = TypeVar("T")
LENGTH_GROUP = 50
"""How many batches are sorted by length together: enough to cut padding, few enough to keep the order random."""


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
class BatchLayout:
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

    @property
    def targets(self) -> int:
        """How many tokens are predicted."""
        return self.target_ids.numel()

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        moved = (t.to(device, non_blocking=True) for t in (self.input_ids, self.position_ids))
        targets = (t.to(device, non_blocking=True) for t in (self.target_positions, self.target_ids))
        input_ids, position_ids = moved
        positions, ids = targets
        return Batch(input_ids, position_ids, self.row_lengths, positions, ids, self.tokens)


@dataclass(frozen=True)
class PairBatch:
    """Sources and targets as an encoder-decoder takes them, both padded on the right.

    Attributes:
        input_ids: `[rows, source time]`.
        attention_mask: `[rows, source time]`, 1 at real tokens.
        labels: `[rows, target time]`, -100 at padding.
        tokens: The number of real tokens of sources and targets.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    tokens: int

    @property
    def targets(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: str) -> PairBatch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        tensors = (self.input_ids, self.attention_mask, self.labels)
        ids, mask, labels = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return PairBatch(ids, mask, labels, self.tokens)


@dataclass(frozen=True)
class LabelledBatch:
    """Texts as a classifier takes them, padded on the right.

    Attributes:
        input_ids: `[rows, time]`.
        attention_mask: `[rows, time]`, 1 at real tokens.
        token_type_ids: `[rows, time]`, which of two texts a token is of; None where the model does not tell them apart.
        labels: `[rows]`, the numbers of the classes.
        tokens: The number of real tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    tokens: int

    @property
    def targets(self) -> int:
        """How many rows are decided."""
        return len(self.labels)

    def to(self, device: str) -> LabelledBatch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        ids, mask, labels = (
            t.to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.labels)
        )
        types = None if self.token_type_ids is None else self.token_type_ids.to(device, non_blocking=True)
        return LabelledBatch(ids, mask, types, labels, self.tokens)


AnyBatch = Batch | PairBatch | LabelledBatch


def collate_rows(examples: Sequence[Example], layout: BatchLayout) -> AnyBatch:
    """Lay `examples`, which are all of one kind, as their kind and `layout` say."""
    if isinstance(examples[0], PairExample):
        return collate_pairs(examples, layout.pad_id)
    if isinstance(examples[0], LabelledExample):
        return collate_labelled([e for e in examples if isinstance(e, LabelledExample)], layout.pad_id)
    return collate(examples, layout)


def collate_pairs(examples: Sequence[Example], pad_id: int) -> PairBatch:
    """Lay sources and targets, a line each."""
    ids, mask = _padded([example.input_ids for example in examples], pad_id)
    labels, _ = _padded([example.labels for example in examples], IGNORED)
    return PairBatch(ids, mask, labels, sum(example.tokens for example in examples))


def collate_labelled(examples: Sequence[LabelledExample], pad_id: int) -> LabelledBatch:
    """Lay texts, a line each."""
    ids, mask = _padded([example.input_ids for example in examples], pad_id)
    types = None
    if any(example.token_type_ids is not None for example in examples):
        types, _ = _padded([example.token_type_ids or [0] * len(example.input_ids) for example in examples], 0)
    labels = torch.tensor([example.labels[0] for example in examples])
    return LabelledBatch(ids, mask, types, labels, sum(example.tokens for example in examples))


def _padded(rows: Sequence[Sequence[int]], filling: int) -> tuple[Tensor, Tensor]:
    """`[rows, time]` filled on the right, and where it is not filled."""
    width = max(len(row) for row in rows)
    filled = torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return filled, mask


def collate(examples: Sequence[Example], layout: BatchLayout) -> Batch:
    """Lay texts as `layout` says.

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
class StepBatches:
    """The batches of one optimizer step, and where the data stands behind them.

    Attributes:
        batches: Each the examples of a batch.
        ends_epoch: No other window of the epoch follows.
        place: The place in a stream behind these rows; (0, 0) where rows have numbers.
        notes: What there is to say when the epoch ends, a sentence each.
    """

    batches: list[list[Example]]
    ends_epoch: bool
    place: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchSampler:
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

    def windows(
        self, train: Sequence[Example], epoch: int, window: int, place: tuple[int, int]
    ) -> Iterator[StepBatches]:
        """The windows of an epoch from number `window` on, each the batches of one optimizer step.

        Args:
            train: The examples that batches are of.
            epoch: Its number, from 0.
            window: The first window, from 0.
            place: Of no use here: numbers tell where rows are.
        """
        batches, size = self.epoch(epoch), self.accumulation
        for start in range(window * size, len(batches), size):
            rows = [[train[index] for index in batch] for batch in batches[start : start + size]]
            yield StepBatches(rows, ends_epoch=start + size >= len(batches))

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
