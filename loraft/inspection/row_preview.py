"""Rows as the model will see them: their tokens, what is learned, and which share a batch; no weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from loraft.config.config_file import takes_path
from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.sampler import batch_sampler, uses_packing
from loraft.dataset.statistics import SourceCounts
from loraft.dataset.streaming import StreamingSampler
from loraft.errors import ConfigError, DataError
from loraft.io.called_files import called
from loraft.io.paths import cache_folder
from loraft.models.load_model import load_config, load_tokenizer
from loraft.models.probe import spec_of
from loraft.models.remote_code import as_trusted
from loraft.models.sources import ModelHandle
from loraft.tasks import TASKS
from loraft.tasks.batches import BatchLayout
from loraft.tasks.task import Task, TokenSpan
from loraft.tokenization.boundaries import Pieces
from loraft.tokenization.examples import Example

Split = Literal["train", "eval"]
BATCHES = 2
SHOWN_TOKENS = 100_000
"""Of a row that is left out, no more tokens are shown."""


@dataclass(frozen=True, slots=True)
class SeenToken:
    """One token of a row.

    Attributes:
        text: What it spells; nothing where the token before it stands for a character that both make.
        trained: The loss is computed on it.
        special: It is no text but a mark: an end, a beginning, padding.
        segment: Which of two texts it is of, 0 or 1, where the model tells them apart.
    """

    id: int
    text: str
    trained: bool
    special: bool
    segment: int | None = None


@dataclass(frozen=True)
class RowPart:
    """Tokens that the model reads in one go.

    Attributes:
        name: text; of an encoder-decoder source (the encoder reads it) and target (the decoder learns it); of a
            pair that is compared chosen and rejected, and of an answer that stands alone its label.
    """

    name: str
    tokens: tuple[SeenToken, ...]


@dataclass(frozen=True)
class SeenRow:
    """A row, or a piece of one, as the model sees it.

    Attributes:
        where: The row's place: `file:line`, or `file: row N`.
        tokens: How many tokens the model reads.
        trained: How many are learned; of a classifier the one decision.
        piece: Which piece of how many, where the row was split.
        label: The name of its class, of a classifier.
        left_out: Why the split has no such row; None where it has.
    """

    where: str
    tokens: int
    trained: int
    parts: tuple[RowPart, ...]
    piece: tuple[int, int] | None = None
    label: str | None = None
    class_number: int | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class BatchRow:
    """A row in a batch.

    Attributes:
        tokens: How many; of an encoder-decoder those of its source.
        target: The tokens of its target, of an encoder-decoder; of two that are compared those of the longer one.
    """

    where: str
    tokens: int
    target: int | None = None


@dataclass(frozen=True)
class SeenBatch:
    """The rows that one forward pass reads.

    Attributes:
        shape: Lines and tokens a line: rows end to end are one line.
        target_shape: Likewise the targets of an encoder-decoder.
        trained: How many tokens, or decisions, are learned.
        padding: How many places hold no token of a row.
    """

    rows: tuple[BatchRow, ...]
    shape: tuple[int, int]
    target_shape: tuple[int, int] | None
    trained: int
    padding: int


@dataclass(frozen=True)
class SpecialToken:
    """A special token that stands in the rows that are shown.

    Attributes:
        roles: What the tokenizer calls it: `eos_token`, `pad_token`, …
    """

    id: int
    text: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Preview:
    """Some rows of a run.

    Attributes:
        rows_in_split: How many rows, or pieces of rows, there are.
        tokens: How many all of them have.
        trained: How many of these are learned.
        rows: Those that are shown.
        end_to_end: The rows of a batch lie end to end, without padding.
        batches: The first batches of the first epoch; none of eval.
        batches_an_epoch: How many there are; None of a stream, which tells at its end.
        sources: What became of the rows of each source.
        special_tokens: Those in the rows that are shown.
        classes: The names of the classes in their order, of a classifier.
        notes: What was decided and found, a sentence each.
    """

    task: str
    split: Split
    rows_in_split: int
    tokens: int
    trained: int
    rows: tuple[SeenRow, ...]
    end_to_end: bool
    batches: tuple[SeenBatch, ...]
    batches_an_epoch: int | None
    sources: tuple[SourceCounts, ...]
    special_tokens: tuple[SpecialToken, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The preview as JSON shows it."""
        return asdict(self)


@as_trusted
@takes_path
def preview(
    config: RunConfig,
    *,
    count: int = 5,
    split: Split = "train",
    places: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Preview:
    """Some rows of a run as the model will see them.

    Args:
        config: The run, or the path of its file.
        count: How many rows, from the first.
        split: Whose: `train` or `eval`.
        places: Show these rows instead: a line or number in a file, or a place as loraft prints it.
        trust_remote_code: Run the code that the model brings.

    Raises:
        InvalidInputError: What `check` refuses of tokenizer and data; nothing is evaluated; there is no row at a place.
    """
    if split == "eval" and config.data.eval is None:
        remedy = "Name a file, or a share of the training rows."
        raise ConfigError("is null: nothing is evaluated", key="data.eval", remedy=remedy)
    task, model = TASKS[config.task], ModelHandle(config.model)
    family = spec_of(load_config(model, task.group), task.group)
    tokenizer = load_tokenizer(model, task.group)
    data = prepare(config, tokenizer, cache_folder())
    sight = _Sight(config, tokenizer, data)
    examples = data.eval if split == "eval" else data.train
    rows = [row for place in places for row in sight.at(place, split)] if places else [*sight.rows(examples, count)]
    end_to_end = uses_packing(config, packs=family.packs)
    batches, an_epoch = _first_batches(config, data) if split == "train" else ([], 0)
    layout = BatchLayout(end_to_end, tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0)
    return Preview(
        task=config.task,
        split=split,
        rows_in_split=len(examples),
        tokens=sum(example.tokens for example in examples),
        trained=sum(example.trained for example in examples),
        rows=tuple(rows),
        end_to_end=end_to_end,
        batches=tuple(_batch(task, examples, layout) for examples in batches),
        batches_an_epoch=an_epoch,
        sources=tuple(data.report.sources),
        special_tokens=tuple(_special_in(rows, tokenizer)),
        classes=data.renderer.labels,
        notes=(*data.renderer.notes, *data.report.notes),
    )


class _Sight:
    """What is shown of the rows of a run."""

    def __init__(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> None:
        self._config, self._data, self._task = config, data, TASKS[config.task]
        self._pieces = Pieces(tokenizer)
        added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._special = {*added, *tokenizer.all_special_ids}

    def rows(self, examples: Sequence[Example], count: int) -> Iterator[SeenRow]:
        """The first `count` rows, pieces of a split one told apart."""
        whole, seen = Counter(example.where for example in examples), Counter[str]()
        for example in examples[:count]:
            seen[example.where] += 1
            piece = (seen[example.where], whole[example.where]) if whole[example.where] > 1 else None
            yield self._row(example, piece)

    def at(self, place: str, split: Split) -> list[SeenRow]:
        """The rows at a place, or why the split has none there.

        Raises:
            DataError: No source has such a row.
        """
        here, there, why = self._data.train, self._data.eval, "is held out for evaluation"
        if split == "eval":
            here, there, why = there, here, "is trained on, not evaluated"
        if found := _among(here, place):
            return [*self.rows(found, len(found))]
        if found := _among(there, place):
            return [self._row(example, left_out=f"{why} (data.eval)") for example in found]
        if found := _among(self._without_limits(), place):
            return [self._row(example, left_out=self._too_long(example)) for example in found]
        raise _no_row(place, here, self._data)

    def _row(self, example: Example, piece: tuple[int, int] | None = None, left_out: str | None = None) -> SeenRow:
        labels = self._data.renderer.labels
        number = self._task.class_number(example) if labels else None
        return SeenRow(
            where=example.where,
            tokens=example.tokens,
            trained=example.trained,
            parts=tuple(RowPart(span.name, tuple(self._tokens(span))) for span in self._task.spans(example)),
            piece=piece,
            label=None if number is None else labels[number],
            class_number=number,
            left_out=left_out,
        )

    def _tokens(self, span: TokenSpan) -> Iterator[SeenToken]:
        of_texts: Sequence[int | None] = span.segments or [None] * len(span.ids)
        for i, text, trained, of in zip(span.ids, self._pieces.row(span.ids), span.trained, of_texts, strict=True):
            yield SeenToken(i, text, trained, i in self._special, of)

    def _without_limits(self) -> list[Example]:
        """Every row that has a trained token, however long it is; of a very long one the beginning."""
        data = self._config.data
        most = max(SHOWN_TOKENS, data.max_length, data.max_target_length or 0)
        limits = {"max_length": most, "max_target_length": None, "on_overlength": "truncate"}
        config = self._config.model_copy(update={"data": data.model_copy(update=limits)})
        whole = prepare(config, self._data.renderer.tokenizer)
        return [*whole.train, *whole.eval]

    def _too_long(self, example: Example) -> str:
        least = "at least " if max(len(example.input_ids), len(example.labels)) >= SHOWN_TOKENS else ""
        found = self._data.renderer.too_long(example, self._config.data, least=least)
        return f"{found}, and is dropped (data.on_overlength)" if found else "has no token that is learned"


def _special_in(rows: Sequence[SeenRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[SpecialToken]:
    named: Mapping[str, Any] = tokenizer.special_tokens_map
    tokens = [token for row in rows for part in row.parts for token in part.tokens if token.special]
    for number, text in dict.fromkeys((token.id, token.text) for token in tokens):
        name = str(tokenizer.convert_ids_to_tokens(number))
        yield SpecialToken(number, text or name, tuple(role for role, own in named.items() if own == name))


def _first_batches(config: RunConfig, data: PreparedData) -> tuple[list[list[Example]], int | None]:
    """The first batches of the first epoch, and how many it has.

    Raises:
        DataError: A row of a stream, beyond those that were looked at before, is bad where that is an error.
    """
    if data.stream is None:
        epoch = batch_sampler(config, data.train, data.train_sources).epoch(0)
        return [[data.train[i] for i in chosen] for chosen in epoch[:BATCHES]], len(epoch)
    training = config.training
    plan = StreamingSampler(data.stream, training.per_device_train_batch_size, training.gradient_accumulation_steps)
    windows = plan.windows([], epoch=0, window=0, place=(0, 0))
    return list(islice((batch for window in windows for batch in window.batches), BATCHES)), None


def _row_in_batch(example: Example) -> BatchRow:
    read = example.longest if example.target_tokens else len(example.input_ids)
    return BatchRow(example.where, read, example.longest_target or None)


def _batch(task: Task, examples: Sequence[Example], layout: BatchLayout) -> SeenBatch:
    laid = task.collate(examples, layout)
    lines = (laid.input_ids, laid.labels) if examples[0].target_tokens else (laid.input_ids,)
    shapes = [(each.shape[0], each.shape[1]) for each in lines]
    return SeenBatch(
        rows=tuple(_row_in_batch(each) for each in examples),
        shape=shapes[0],
        target_shape=shapes[1] if len(shapes) > 1 else None,
        trained=laid.targets,
        padding=sum(count * time for count, time in shapes) - laid.tokens,
    )


def _among(examples: Iterable[Example], place: str) -> list[Example]:
    ends = (f":{place}", f": row {place}") if place.isdecimal() else ()
    return [each for each in examples if each.where.endswith(ends) or place in (each.where, called(each.where))]


def _no_row(place: str, examples: Sequence[Example], data: PreparedData) -> DataError:
    """There is no such row, or it was skipped, which the counts of its source tell."""
    sources = data.report.sources
    counts = {"bad rows": [s.bad for s in sources], "rows without a trained token": [s.untrained for s in sources]}
    skipped = [f"{sum(numbers)} {what}" for what, numbers in counts.items() if any(numbers)]
    besides = f"; {' and '.join(skipped)} were left out" if skipped else ""
    if data.report.sampled is not None:
        besides = f" among the first {data.report.sampled:,} rows, all that are looked at of a stream{besides}"
    remedy = "Name its line or its number." + (f" Rows are named like {examples[0].where}." if examples else "")
    return DataError(f"no row is at {place!r}{besides}", parameter="places", remedy=remedy)
