"""From the `data` section to examples: read, recognised, rendered, cut, counted and held out.

This module knows the order of these steps and what is done with rows that do not pass one. No row disappears
without being counted, and every problem of every source is found before it ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from loraft.config.schema import DataSection, DataSource, RunConfig
from loraft.data.examples import Example
from loraft.data.formats import Languages, Record, check_format, detect_format, to_record
from loraft.data.records import read_rows
from loraft.data.rendering import RowRenderer, renderer_of
from loraft.data.statistics import DataReport, SourceCounts, lengths_of
from loraft.data.tokenize import Renderer
from loraft.errors import DataError, Problem, Refused

__all__ = ["PreparedData", "SourceSpan", "prepare", "with_defaults"]

SHOWN_PROBLEMS = 20
SAMPLES = 3
CUTS = ("truncate", "split")
EVAL_STREAM = 0x5EED
"""Keeps the draw of the held-out rows apart from the order of epochs, which has the same seed."""


@dataclass(frozen=True)
class SourceSpan:
    """The examples `start … stop - 1` of one source, seen `weight` times an epoch."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The rows of a run as tokens.

    Attributes:
        train: The examples to train on, source after source.
        train_sources: Where each source's examples are, and its weight.
        eval: The examples to evaluate on.
        report: All of it in numbers.
        renderer: What made the tokens, and makes prompts the same way.
        fingerprint: sha256 over all tokens and labels.
    """

    train: list[Example]
    train_sources: list[SourceSpan]
    eval: list[Example]
    report: DataReport
    renderer: RowRenderer
    fingerprint: str


@dataclass
class _Source:
    """A source on its way.

    Attributes:
        given: What the config says of it, the defaults of its section filled in.
        counts: What became of its rows.
        records: What its good rows say.
        places: Where each of these stands.
        examples: What is left of them as tokens.
        lengths: The tokens of each record, before any is cut.
        problems: What is wrong with its bad rows.
    """

    given: DataSource
    counts: SourceCounts
    records: list[Record] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def prepare(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Read and tokenize everything that `config.data` names.

    Raises:
        DataError: With every problem found: files and rows that cannot be read or rendered, rows over `max_length`
            where that is an error, nothing left to train or to evaluate on.
    """
    data = config.data
    problems: list[Problem] = []
    train = _sources(data.train, config, problems)
    held_out = _sources(data.eval, config, problems) if isinstance(data.eval, tuple) else []
    renderer = _renderer(config, train, held_out, tokenizer, problems)
    for source in (*train, *held_out):
        problems += _tokenized(source, data, renderer)
    if not problems:
        problems += _nothing_left("data.train", train) + _nothing_left("data.eval", held_out)
    if problems:
        raise DataError.several(_shortened(problems))
    evaluation = [example for source in held_out for example in source.examples]
    if isinstance(data.eval, float):
        evaluation = _hold_out(train, data.eval, config.seed)
    examples = [example for source in train for example in source.examples]
    return PreparedData(
        train=examples,
        train_sources=list(_spans(train)),
        eval=evaluation,
        report=_report(data, renderer, train, held_out, examples, evaluation),
        renderer=renderer,
        fingerprint=_fingerprint([*examples, *evaluation]),
    )


def _sources(sources: Sequence[DataSource], config: RunConfig, problems: list[Problem]) -> list[_Source]:
    """Every source as records; what is wrong with whole sources, or with rows that may not be bad, joins `problems`."""
    found, data = [], config.data
    for given in sources:
        try:
            source = _source(with_defaults(given, data), config)
        except Refused as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        if data.on_bad_row == "error":
            problems += source.problems
        found.append(source)
    return found


def with_defaults(source: DataSource, data: DataSection) -> DataSource:
    """`source` with what the section says for every source that does not say its own."""
    return source.model_copy(
        update={
            "split": source.split or data.split,
            "name": source.name or data.name,
            "columns": source.columns or data.columns,
            "format": data.format if source.format == "auto" else source.format,
        }
    )


def _source(given: DataSource, config: RunConfig) -> _Source:
    read = read_rows(given)
    try:
        row_format = given.format
        if row_format == "auto":
            row_format = detect_format(read.columns, given.columns, config.task)
        check_format(row_format, config.task)
    except DataError as error:
        if not read.rows:
            raise DataError.several(_shortened(read.problems)) from None
        raise DataError.several([replace(error.problems[0], where=given.path)]) from None
    counts = SourceCounts(given.path, row_format, read=len(read.rows) + len(read.problems))
    source = _Source(given, counts, problems=list(read.problems))
    languages = Languages(config.data.source_lang, config.data.target_lang)
    for row in read.rows:
        try:
            source.records.append(to_record(row, row_format, given.columns, config.task, languages))
            source.places.append(row.where)
        except DataError as error:
            if error.problems[0].where is None:  # it is the config's fault, and every row would say so
                raise
            source.problems += error.problems
    return source


def _renderer(
    config: RunConfig,
    train: Sequence[_Source],
    held_out: Sequence[_Source],
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
) -> RowRenderer:
    """The renderer of all sources; what is learned, such as the classes that there are, is told by the training rows.

    Raises:
        DataError: There is none; with the problems of the rows, which it may follow from.
    """
    records = [record for source in train for record in source.records]
    if config.task == "causal_lm":
        records += [record for source in held_out for record in source.records]
    try:
        return renderer_of(config.task, config.data, tokenizer, records)
    except DataError as error:
        raise DataError.several(_shortened([*problems, *error.problems])) from None


def _tokenized(source: _Source, data: DataSection, renderer: RowRenderer) -> list[Problem]:
    """Turn the records of `source` into examples that fit, and return what must not be."""
    rendered, places, unrendered, columns = [], [], [], source.given.columns
    for record, where in zip(source.records, source.places, strict=True):
        try:
            rendered.append(renderer.render(record))
            places.append(where)
        except DataError as error:
            unrendered += [replace(p, where=where, key=columns.get(p.key or "", p.key)) for p in error.problems]
    examples = renderer.examples(rendered, places)
    source.problems += unrendered
    source.counts.bad = len(source.problems)
    source.lengths = [len(example.input_ids) for example in examples]
    long = {place: found for place, e in enumerate(examples) if (found := renderer.too_long(e, data)) is not None}
    source.examples = list(_kept(examples, rendered, long, source.counts, data, renderer))
    source.counts.kept = len(source.examples)
    too_long = []
    if data.on_overlength == "error":
        too_long = [_too_long(examples[place].where, found, renderer) for place, found in long.items()]
    return [*(unrendered if data.on_bad_row == "error" else []), *too_long]


def _kept(
    examples: Sequence[Example],
    rendered: Sequence[Any],
    long: Collection[int],
    counts: SourceCounts,
    data: DataSection,
    renderer: RowRenderer,
) -> Iterable[Example]:
    """The examples that fit, those that do not treated as `data.on_overlength` says; untrained ones left out."""
    choice = data.on_overlength
    if choice == "auto":
        choice = "split" if counts.format == "text" else "drop"
    for place, example in enumerate(examples):
        pieces: Sequence[Example] = [example]
        if place in long:
            counts.overlength += 1
            counts.done = {"drop": "dropped", "truncate": "truncated", "split": "split", "error": "–"}[choice]
            pieces = renderer.cut(rendered[place], example, data, choice) if choice in CUTS else []
        trained = [piece for piece in pieces if piece.trained]
        if pieces and not trained:
            counts.untrained += 1
        yield from trained


def _too_long(where: str, found: str, renderer: RowRenderer) -> Problem:
    ways = "drop, truncate or split" if isinstance(renderer, Renderer) else "drop or truncate"
    return Problem(found, where=where, remedy=f"raise it, or write data.on_overlength: {ways}")


def _nothing_left(key: str, sources: Sequence[_Source]) -> list[Problem]:
    if not sources or any(source.examples for source in sources):
        return []
    total = {name: sum(getattr(s.counts, name) for s in sources) for name in ("read", "bad", "overlength", "untrained")}
    return [
        Problem(
            f"no row is left: of {total['read']} rows read, {total['bad']} were bad, {total['overlength']} too long "
            f"and {total['untrained']} without a trained token",
            where=", ".join(source.counts.source for source in sources),
            key=key,
            remedy="look at data.max_length and data.train_on" if total["overlength"] or total["untrained"] else None,
        )
    ]


def _hold_out(train: list[_Source], share: float, seed: int) -> list[Example]:
    """Take that share of the rows out of `train`, pieces of one row together; drawn by the seed.

    Raises:
        DataError: There are fewer than two rows.
    """
    rows = sorted({example.where for source in train for example in source.examples})
    if len(rows) < 2:
        raise DataError(
            "one row cannot be shared between training and evaluation", key="data.eval", remedy="write data.eval: null"
        )
    random = np.random.Generator(np.random.PCG64([seed, EVAL_STREAM]))
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    taken = {rows[i] for i in random.permutation(len(rows))[:count]}
    out = [example for source in train for example in source.examples if example.where in taken]
    for source in train:
        source.examples = [example for example in source.examples if example.where not in taken]
    return out


def _spans(sources: Iterable[_Source]) -> Iterable[SourceSpan]:
    start = 0
    for source in sources:
        stop = start + len(source.examples)
        yield SourceSpan(start, stop, source.given.weight)
        start = stop


def _report(
    data: DataSection,
    renderer: RowRenderer,
    train: Sequence[_Source],
    held_out: Sequence[_Source],
    examples: Sequence[Example],
    evaluation: Sequence[Example],
) -> DataReport:
    lengths = lengths_of([length for source in train for length in source.lengths])
    return DataReport(
        train_rows=len(examples),
        eval_rows=len(evaluation),
        tokens=sum(example.tokens for example in examples),
        trained_tokens=sum(example.trained for example in examples),
        length=lengths,
        max_length=data.max_length,
        sources=[source.counts for source in (*train, *held_out)],
        samples=[{"row": e.where, "text": renderer.marked(e)} for e in examples[:SAMPLES]],
        notes=(*_notes(data, lengths.keeps_99_percent, [*train, *held_out]), *_seen_rows(train, held_out)),
    )


def _notes(data: DataSection, keeps: int, sources: Sequence[_Source]) -> Iterable[str]:
    for source in sources:
        counts = source.counts
        if counts.overlength:
            yield (
                f"{counts.source}: {counts.overlength} of {counts.read} rows are longer than data.max_length "
                f"{data.max_length} and are {counts.done}; {keeps} would keep 99 % of the training rows"
            )
        if counts.untrained:
            yield f"{counts.source}: {counts.untrained} rows have no trained token and are left out"
        if counts.bad:
            first = source.problems[0]
            yield f"{counts.source}: {counts.bad} bad rows are skipped, the first at {first.where}: {first.message}"


def _seen_rows(train: Sequence[_Source], held_out: Sequence[_Source]) -> Iterable[str]:
    """A sentence for each source that is trained and evaluated on."""
    trained = {(s.given.path, s.given.split or "train", s.given.name) for s in train}
    for source in held_out:
        if (source.given.path, source.given.split or "train", source.given.name) in trained:
            yield f"{source.given.path} is trained and evaluated on: its loss says nothing about new rows"


def _fingerprint(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(np.asarray([*example.input_ids, -1, *example.labels, -2], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _shortened(problems: Sequence[Problem]) -> list[Problem]:
    more = len(problems) - SHOWN_PROBLEMS
    if more <= 0:
        return list(problems)
    remedy = "data.on_bad_row: skip leaves bad rows out and counts them"
    return [*problems[:SHOWN_PROBLEMS], Problem(f"and {more} more problems like these", remedy=remedy)]
