"""Rows as they come: drawn from a buffer, turned into tokens, laid into windows, and none of them kept.

A buffer is filled with the first rows; each draw gives one of them, by the seed, and the next row takes its place. So
the order is a function of the seed and the epoch, and a place in it is two numbers: how many rows were drawn, and how
many pieces of the next one were used. To go on from there the rows before are drawn again, which looks into none of
them. Where `data.shuffle` is false, the rows are drawn as they lie, one source after the other.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import Protocol, TypeVar

import numpy as np

from loraft.config.choices import RowFormat
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.sampler import BatchSampler, StepBatches, chunks
from loraft.dataset.tokenize_rows import LengthPolicy, TokenizedRow, length_policy, pack, tokenize_rows, unpack
from loraft.errors import DataError, Problem
from loraft.rows.formats import LanguagePair, Record
from loraft.rows.raw_rows import count_rows, is_read_whole, raw_rows
from loraft.rows.row import RawRow
from loraft.tasks import TASKS
from loraft.tokenization.examples import Example, RowRenderer

Result = TypeVar("Result")
TOKENIZED_AT_ONCE = 64
DRAWS_AT_ONCE = 4096
DRAWN, BAD, TOO_LONG, UNTRAINED = "drawn", "bad", "too long", "without a trained token"
ROWS, SOURCES = 0x5EA1, 0x5EA2
"""Keep the draws of rows and of sources apart from each other, and from others of the same seed and epoch."""


class Readers(Protocol):
    """Those that read a stream together, of whom this process is one: each turns its share of the rows into tokens."""

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def world(self) -> int:
        """How many there are."""

    def of_each(self, act: Callable[[], Result]) -> list[Result]:
        """What `act` gives with each of them."""


@dataclass(frozen=True)
class OneReader:
    """The only one."""

    rank: int = 0
    world: int = 1

    def of_each(self, act: Callable[[], Result]) -> list[Result]:
        """What `act` gives."""
        return [act()]


@dataclass(frozen=True)
class StreamedSource:
    """A source that is read as it comes.

    Attributes:
        format: The format of its rows.
        wanted: What the config says of it, and of rows that are too long.
        rows: How many it has; None where that is not known.
    """

    format: RowFormat
    wanted: LengthPolicy
    rows: int | None


@dataclass(frozen=True, eq=False)
class RowStream:
    """The training rows of a run, as they come.

    Attributes:
        sources: The sources, which are mixed by how many rows each still has.
        readers: Who reads them. All know what becomes of every row, so that the order, the places in it and the counts
            are those of one.
        counts: What became of the rows so far: how many of them were drawn, and how many are what a word says.
        findings: What was found in how many of them.
        first_bad: What is wrong with the first bad one; empty where there was none.
    """

    config: RunConfig
    sources: tuple[StreamedSource, ...]
    renderer: RowRenderer
    readers: Readers = OneReader()
    counts: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    first_bad: list[Problem] = field(default_factory=list)

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where a source does not say."""
        counts = [source.rows for source in self.sources]
        return None if None in counts else sum(count for count in counts if count is not None)

    def notes(self) -> tuple[str, ...]:
        """A sentence, where a row was left out or cut, and one for each finding."""
        found = [f"{self.counts[what]:,} {what}" for what in (BAD, TOO_LONG, UNTRAINED) if self.counts[what]]
        drawn = f"of {self.counts[DRAWN]:,} rows drawn since this start"
        first = "".join(f"; the first bad one at {bad.place}: {bad.message}" for bad in self.first_bad)
        left_out = [f"{drawn}, {' and '.join(found)}{first}"] if found else []
        return (*left_out, *(f"{drawn}, in {rows:,}: {what}" for what, rows in self.findings.items()))

    def examples(self, epoch: int, drawn: int = 0, pieces: int = 0) -> Iterator[tuple[Example, int, int]]:
        """The examples of an epoch from a place on, each with the place behind it.

        Raises:
            DataError: A row is bad, or too long where that is an error; it is named with file and line.
        """
        order = islice(self._order(epoch), drawn, None)
        while chunk := list(islice(order, TOKENIZED_AT_ONCE * self.readers.world)):
            for outcome in self._outcomes(chunk):
                count = len(outcome.examples)
                for piece, example in enumerate(outcome.examples[pieces:], start=pieces + 1):
                    yield example, *((drawn + 1, 0) if piece == count else (drawn, piece))
                drawn, pieces = drawn + 1, 0

    def _order(self, epoch: int) -> Iterator[tuple[int, RawRow]]:
        seed, opened = self.config.seed, [raw_rows(source.wanted.source, streaming=True) for source in self.sources]
        if not self.config.data.shuffle:
            return ((index, row) for index, rows in enumerate(opened) for row in rows)
        mixed = _mixed([source.rows for source in self.sources], opened, _draws([seed, epoch, SOURCES]))
        return _shuffled(mixed, self.config.data.shuffle_buffer, _draws([seed, epoch, ROWS]))

    def _outcomes(self, chunk: Sequence[tuple[int, RawRow]]) -> list[TokenizedRow]:
        """What becomes of some rows, in their order, of which each reader looks into its share."""
        rank, world = self.readers.rank, self.readers.world
        own: list[TokenizedRow] = []

        def told() -> bytes:
            own.extend(self._tokenized(chunk[rank::world]))
            return pack(own) if world > 1 else b""

        packed = self.readers.of_each(told)
        shares = [own if number == rank else unpack(each) for number, each in enumerate(packed)]
        in_order = (shares[place % world][place // world] for place in range(len(chunk)))
        return [self._counted(outcome, self.sources[of]) for outcome, (of, _) in zip(in_order, chunk, strict=True)]

    def _tokenized(self, chunk: Sequence[tuple[int, RawRow]]) -> list[TokenizedRow]:
        found: dict[int, TokenizedRow] = {}
        data, task = self.config.data, TASKS[self.config.task]
        languages = LanguagePair(data.source_lang, data.target_lang)
        for index, source in enumerate(self.sources):
            records: dict[int, tuple[Record, str]] = {}
            for place in (place for place, (of, _) in enumerate(chunk) if of == index):
                row = chunk[place][1]()
                if isinstance(row, Problem):
                    found[place] = TokenizedRow(problems=(row,))
                    continue
                try:
                    records[place] = task.record(row, source.format, source.wanted.source.columns, languages), row.where
                except DataError as error:
                    found[place] = TokenizedRow(problems=error.problems)
            said, where = [record for record, _ in records.values()], [where for _, where in records.values()]
            found |= zip(records, tokenize_rows(self.renderer, said, where, source.wanted), strict=True)
        return [found[place] for place in range(len(chunk))]

    def _counted(self, outcome: TokenizedRow, source: StreamedSource) -> TokenizedRow:
        if outcome.problems and self.config.data.on_bad_row == "error":
            raise DataError.several(outcome.problems)
        if outcome.too_long is not None and source.wanted.done == "error":
            raise DataError.several([outcome.too_long])
        became = {BAD: outcome.problems, TOO_LONG: outcome.too_long, UNTRAINED: outcome.untrained}
        self.counts.update([DRAWN, *(what for what, is_so in became.items() if is_so)])
        self.findings.update(outcome.findings)
        if not self.first_bad:
            self.first_bad.extend(outcome.problems[:1])
        return outcome


def streamed(config: RunConfig, sources: Sequence[tuple[DataSource, RowFormat]], renderer: RowRenderer) -> RowStream:
    """The stream of sources, whose rows are counted where that takes no more than going through a file once.

    Raises:
        DataError: A source cannot be streamed, or cannot be mixed with others.
    """
    found = []
    for given, row_format in sources:
        if is_read_whole(given):
            remedy = "write it as .jsonl, one object a line"
            raise DataError("is read whole: a .json file cannot be streamed", where=given.path, remedy=remedy)
        found.append(StreamedSource(row_format, length_policy(given, config.data, row_format), count_rows(given)))
    unknown = [source.wanted.source.path for source in found if source.rows is None]
    if unknown and len(found) > 1 and config.data.shuffle:
        message = "does not say how many rows it has, so it cannot be mixed with others in a stream"
        raise DataError(message, where=unknown[0], key="data.train", remedy="stream it alone")
    return RowStream(config, tuple(found), renderer)


@dataclass(frozen=True, eq=False)
class StreamingSampler:
    """Which rows of a stream share a batch: those that are drawn one after the other."""

    stream: RowStream
    batch_size: int
    accumulation: int

    def windows(
        self, train: Sequence[Example], epoch: int, window: int, place: tuple[int, int]
    ) -> Iterator[StepBatches]:
        """The windows of an epoch from a place in the stream on; `train` and `window` are for plans of known rows.

        Raises:
            DataError: A row is bad where that is an error, or none of a whole epoch can be trained on.
        """
        rows, size = self.stream.examples(epoch, *place), self.batch_size
        taken = list(islice(rows, size * self.accumulation))
        if not taken and place == (0, 0):
            message = "no row of the stream can be trained on"
            raise DataError(message, key="data.train", remedy="look at data.max_length")
        while taken:
            following = list(islice(rows, size * self.accumulation))
            examples = [example for example, _, _ in taken]
            batches = chunks(examples, size)
            notes = () if following else self.stream.notes()
            yield StepBatches(batches, place=taken[-1][1:], ends_epoch=not following, notes=notes)
            taken = following

    def read_aside(self) -> StreamingSampler:
        """The same rows, whose reading is not counted as the run's."""
        return replace(self, stream=replace(self.stream, counts=Counter(), findings=Counter(), first_bad=[]))

    def steps(self, number: int) -> int:
        """The optimizer steps of an epoch in which every row is trained on; very many where the rows are not known."""
        rows = self.stream.rows
        return sys.maxsize if rows is None else ceil(ceil(rows / self.batch_size) / self.accumulation)


def streaming_sampler(stream: RowStream, drawn: BatchSampler, readers: Readers) -> StreamingSampler:
    """The batches of a stream that some read together, as large as those of rows that are known."""
    return StreamingSampler(replace(stream, readers=readers), drawn.batch_size, drawn.accumulation)


def _mixed(
    counts: Sequence[int | None], sources: Sequence[Iterator[RawRow]], draws: Iterator[float]
) -> Iterator[tuple[int, RawRow]]:
    """The rows of all sources, each drawn by how many rows it still has; a source that does not say stands alone."""
    if len(sources) == 1:
        yield from ((0, row) for row in sources[0])
        return
    left = [count or 0 for count in counts]
    while total := sum(left):
        at, source = next(draws) * total, 0
        while at >= left[source]:
            at -= left[source]
            source += 1
        row = next(sources[source], None)
        left[source] = 0 if row is None else left[source] - 1
        if row is not None:
            yield source, row


def _shuffled(rows: Iterator[tuple[int, RawRow]], size: int, draws: Iterator[float]) -> Iterator[tuple[int, RawRow]]:
    buffer = list(islice(rows, size))
    for row in rows:
        at = int(next(draws) * size)
        yield buffer[at]
        buffer[at] = row
    while buffer:
        at = int(next(draws) * len(buffer))
        buffer[at], buffer[-1] = buffer[-1], buffer[at]
        yield buffer.pop()


def _draws(seed: Sequence[int]) -> Iterator[float]:
    """Numbers from 0 up to 1, drawn many at a time."""
    random = np.random.Generator(np.random.PCG64(seed))
    while True:
        yield from random.random(DRAWS_AT_ONCE).tolist()
