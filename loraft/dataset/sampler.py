"""From examples to batches: which rows share a batch, in which order, and whether they lie end to end.

The order is a pure function of the seed and the epoch, so that a place in the data is two numbers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from loraft.config.schema import RunConfig
from loraft.tasks import TASKS
from loraft.tokenization.examples import Example

T = TypeVar("T")
LENGTH_GROUP = 50
"""How many batches are sorted by length together: enough to cut padding, few enough to keep the order random."""


@dataclass(frozen=True)
class SourceSpan:
    """The examples `start … stop - 1` of one source, seen `weight` times an epoch."""

    start: int
    stop: int
    weight: float

    @property
    def drawn(self) -> int:
        """How many rows an epoch draws from it."""
        return round(self.weight * (self.stop - self.start))


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
        batch_size: Rows in a batch; filled rows where `fill_to` is set.
        accumulation: Batches in an optimizer step.
        group_by_length: Put rows of like length into one batch.
        shuffled: Draw the order anew in each epoch; otherwise it is that of the rows, source by source.
        keeps_batches: The batches of all epochs are those of the first, in an order that is drawn anew.
        fill_to: Fill rows up to this many tokens with examples; None leaves each example a row of its own.
    """

    lengths: Sequence[int]
    spans: Sequence[SourceSpan]
    batch_size: int
    accumulation: int
    seed: int
    group_by_length: bool = False
    fill_to: int | None = None
    shuffled: bool = True
    keeps_batches: bool = False
    _batches: dict[int, int] = field(default_factory=dict, init=False, compare=False, repr=False)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of epoch `number` (from 0), each a list of examples."""
        random = np.random.Generator(np.random.PCG64([self.seed, number]))
        if self.keeps_batches and number:
            kept = self.epoch(0)
            return [kept[i] for i in random.permutation(len(kept))]
        drawn = self._drawn(random)
        order = random.permutation(drawn).tolist() if self.shuffled else sorted(drawn)
        if self.fill_to is not None:
            return self._filled(order, self.fill_to, random)
        return self._grouped(order, random) if self.group_by_length else chunks(order, self.batch_size)

    def _filled(self, order: Sequence[int], fill_to: int, random: np.random.Generator) -> list[list[int]]:
        """Batches of rows that are filled to a length, in random order."""
        filled = pack_rows([self.lengths[i] for i in order], fill_to)
        rows = [[order[place] for place in row] for row in filled]
        rows = [rows[i] for i in random.permutation(len(rows))]
        return [[i for row in chunk for i in row] for chunk in chunks(rows, self.batch_size)]

    def _grouped(self, order: Sequence[int], random: np.random.Generator) -> list[list[int]]:
        """Batches of examples of about one length, in random order."""
        grouped: list[list[int]] = []
        for chunk in chunks(order, self.batch_size * LENGTH_GROUP):
            grouped += chunks(sorted(chunk, key=lambda i: -self.lengths[i]), self.batch_size)
        return [grouped[i] for i in random.permutation(len(grouped))]

    def windows(
        self, train: Sequence[Example], epoch: int, window: int, place: tuple[int, int]
    ) -> Iterator[StepBatches]:
        """The windows of an epoch (from 0) from number `window` on, each the batches of one optimizer step.

        `place` is for streams: here numbers tell where rows are.
        """
        batches = chunks(self.epoch(epoch), self.accumulation)
        for number in range(window, len(batches)):
            rows = [[train[index] for index in batch] for batch in batches[number]]
            yield StepBatches(rows, ends_epoch=number == len(batches) - 1)

    def steps(self, number: int) -> int:
        """The optimizer steps of epoch `number`; the last one may have fewer batches."""
        if self.fill_to is None:
            batches = math.ceil(sum(span.drawn for span in self.spans) / self.batch_size)
        else:  # it takes a packing of all rows to count them, and every step asks
            if number not in self._batches:
                self._batches[number] = len(self.epoch(number))
            batches = self._batches[number]
        return math.ceil(batches / self.accumulation)

    def _drawn(self, random: np.random.Generator) -> list[int]:
        """Each example as often as its source's weight says; a fraction draws that share of them."""
        drawn: list[int] = []
        for span in self.spans:
            size = span.stop - span.start
            whole, rest = divmod(span.drawn, size) if size else (0, 0)
            drawn += list(range(span.start, span.stop)) * whole
            drawn += (span.start + random.permutation(size)[:rest]).tolist()
        return drawn


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    """The items in their order, so many at a time."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill rows of `capacity` tokens with examples, longest first, each into the fullest row that takes it.

    No example has more tokens than that.

    Returns:
        The rows, each the places of its examples in `lengths`; every place stands once.

    Source: best-fit decreasing; Ding et al. 2024, Fewer Truncations Improve Language Modeling (arXiv:2404.10830).
    """
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (free tokens, row) of those that take another, sorted
    shortest = min(lengths, default=0)
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(by_room, (lengths[place], -1))
        if at == len(by_room):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = by_room.pop(at)
        rows[row].append(place)
        if room - lengths[place] >= shortest:
            bisect.insort(by_room, (room - lengths[place], row))
    return rows


def uses_packing(config: RunConfig, *, packs: bool) -> bool:
    """Whether the rows of a batch lie end to end, without padding; `packs` says that the model's family can."""
    wanted = config.data.packing != "off" and config.model.attn_implementation == "auto"
    return packs and wanted and TASKS[config.task].packs


def fills(config: RunConfig) -> bool:
    """Whether rows are filled up to `data.max_length` with one another."""
    return config.data.packing == "fill" and TASKS[config.task].packs


def batch_sampler(config: RunConfig, train: Sequence[Example], sources: Sequence[SourceSpan]) -> BatchSampler:
    """The batches of a run."""
    return BatchSampler(
        lengths=[example.tokens for example in train],
        spans=sources,
        batch_size=config.training.per_device_train_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
        seed=config.seed,
        group_by_length=config.training.group_by_length,
        fill_to=TASKS[config.task].texts_a_row * config.data.max_length if fills(config) else None,
        shuffled=config.data.shuffle is not False,
        keeps_batches=config.data.shuffle == "batches",
    )
