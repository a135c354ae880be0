"""From the `data` section to examples: read, recognised, rendered, cut, counted and held out.

No row disappears without being counted, and every problem of every source is found before it ends.
"""

from __future__ import annotations

import gc
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection
from loraft.dataset.sampler import SourceSpan
from loraft.dataset.source_rows import (
    ReadSources,
    SourceRows,
    digest_of_draw,
    expand_sources,
    from_cache,
    held_out_rows,
    read_sources,
    shortened,
    to_cache,
    tokenize_source,
)
from loraft.dataset.statistics import (
    DataReport,
    contradictions,
    count_classes,
    findings,
    lengths_of,
    repetitions,
    unknown_tokens,
)
from loraft.dataset.streaming import RowStream, streamed
from loraft.dataset.token_cache import TokenCache, contents_of, identity_of
from loraft.errors import DataError, Problem
from loraft.figures import counted, listed
from loraft.tasks import TASKS
from loraft.tasks.task import Task
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer

SAMPLES = 3


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The rows of a run as tokens.

    Attributes:
        train_sources: Where each source's examples are, and its weight.
        eval_counts: How many of the rows to evaluate on each source has, in order: of those to train on where a share
            of these is held out.
        renderer: What made the tokens, and makes prompts the same way.
        fingerprint: sha256 over all tokens and labels, the names of classes too; of a stream over what they depend on.
        contents: What the sources to train on are, and those to evaluate on, by which a later evaluation knows whether
            they are still the same; None where nothing tells.
        held_out: What tells which rows were held out of those to train on; None where a source of their own is named.
        stream: The training rows as they come, where `data.streaming` asks for it; `train` and the report are then of
            the first rows of each source alone.
    """

    train: list[Example]
    train_sources: list[SourceSpan]
    eval: list[Example]
    eval_counts: tuple[int, ...]
    report: DataReport
    renderer: RowRenderer
    fingerprint: str
    contents: tuple[tuple[str | None, ...], tuple[str | None, ...]]
    held_out: str | None = None
    stream: RowStream | None = None


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the garbage collector: rows form no cycles of references, and it took a sixth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collection()
def prepare(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None, read: ReadSources | None = None
) -> PreparedData:
    """Read and tokenize everything that `config.data` names, or find it as it was tokenized before.

    `cache` is where tokens are kept for the next start: without it none are kept or found. `read` are the sources as
    records, where they were read already.

    Raises:
        DataError: With every problem found: files and rows that cannot be read or rendered, rows over `max_length`
            where that is an error, nothing left to train or to evaluate on; or the steps of a stream are not known.
    """
    data, task = config.data, TASKS[config.task]
    given, given_held = expand_sources(data)
    contents = contents_of(given, streaming=data.streaming), contents_of(given_held, streaming=data.streaming)
    named = partial(identity_of, config, (given, given_held), contents, tokenizer)
    keeper = TokenCache(cache, named() if cache is not None and not data.streaming else None)
    if (found := keeper.find()) is not None:
        train, held_out, learned = from_cache(*found, given, given_held)
        renderer = task.renderer(data, tokenizer, learned)
    else:
        train, held_out, renderer, learned = _made(config, read or read_sources(config), tokenizer)
        keeper.keep(*to_cache(train, held_out, learned))
    stream = _streamed(config, train, renderer) if data.streaming else None
    evaluated = [source.examples for source in held_out]
    if isinstance(data.eval, float):
        evaluated = _hold_out(train, task, data.eval, config.seed)
    evaluation = [example for examples in evaluated for example in examples]
    examples = [example for source in train for example in source.examples]
    report = _report(config, renderer, train, held_out, examples, evaluation)
    report = replace(report, notes=(*keeper.notes, *report.notes))
    stops = accumulate(len(source.examples) for source in train)
    spans = zip(train, stops, strict=True)
    tokens = (examples, evaluation), learned.labels
    return PreparedData(
        train=examples,
        train_sources=[SourceSpan(stop - len(source.examples), stop, source.given.weight) for source, stop in spans],
        eval=evaluation,
        eval_counts=tuple(map(len, evaluated)),
        report=report if stream is None else _report_of_stream(config, report, stream),
        renderer=renderer,
        fingerprint=_fingerprint(*tokens) if stream is None else named(program=False) or "unknown",
        contents=contents,
        held_out=digest_of_draw(evaluation) if isinstance(data.eval, float) else None,
        stream=stream,
    )


def _streamed(config: RunConfig, train: Sequence[SourceRows], renderer: RowRenderer) -> RowStream:
    """The stream of the sources whose first rows are known.

    Raises:
        DataError: A source cannot be streamed, or the number of steps depends on rows that were not read.
    """
    stream = streamed(config, [(source.given, source.counts.format) for source in train], renderer)
    in_pieces = any(source.counts.done == "split" for source in train)
    if config.training.max_steps is None and (stream.rows is None or in_pieces):
        why = "rows are split into pieces" if in_pieces else "a source does not say how many rows it has"
        message = f"is needed, for {why}, and data.streaming reads rows as they come"
        remedy = "write the number of optimizer steps"
        raise DataError(message, key="training.max_steps", remedy=remedy)
    return stream


def _report_of_stream(config: RunConfig, report: DataReport, stream: RowStream) -> DataReport:
    """The report of the first rows, which says that they are no more than that."""
    sampled = sum(counts.read for counts in report.sources[: len(stream.sources)])
    known = "not known" if stream.rows is None else f"{stream.rows:,}"
    notes = [f"data.streaming: what is said of the training rows is of the first {sampled:,}; all of them are {known}"]
    if config.training.max_steps is None and any(source.wanted.done == "split" for source in stream.sources):
        notes.append(
            "data.streaming: steps are counted as if no row were split; where later ones are, training ends before "
            "the last of them (write training.max_steps)"
        )
    return replace(report, train_rows=stream.rows, sampled=sampled, notes=(*notes, *report.notes))


def _made(
    config: RunConfig, read: ReadSources, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[SourceRows], list[SourceRows], RowRenderer, DatasetFacts]:
    """The sources rendered, tokenized and cut; an error holds every problem found."""
    data, task = config.data, TASKS[config.task]
    train, held_out, problems = read.train, read.held_out, list(read.problems)
    records = [record for source in train for record in source.records]
    if task.reads_system_prompts:  # all else, such as the classes, is told by the training rows alone
        records += [record for source in held_out for record in source.records]
    learned = task.facts(data, records)
    try:
        renderer = task.renderer(data, tokenizer, learned)
    except DataError as error:  # with no record left it only follows from the bad rows, and is left out
        follows = () if problems and not records else error.problems
        raise DataError.several(shortened([*problems, *follows])) from None
    for source in (*train, *held_out):
        problems += tokenize_source(source, data, renderer)
    if not problems:
        problems += _nothing_left("data.train", train) + _nothing_left("data.eval", held_out)
    if problems:
        raise DataError.several(shortened(problems))
    return train, held_out, renderer, learned


def _nothing_left(key: str, sources: Sequence[SourceRows]) -> list[Problem]:
    if not sources or any(source.examples for source in sources):
        return []
    total = {name: sum(getattr(s.counts, name) for s in sources) for name in ("read", "bad", "overlength", "untrained")}
    message = (
        f"no row is left: of {total['read']} rows read, {total['bad']} were bad, {total['overlength']} too long "
        f"and {total['untrained']} without a trained token"
    )
    deciding = {"data.max_length": total["overlength"] or total["untrained"], "data.train_on": total["untrained"]}
    decided = " and ".join(key for key, left_out in deciding.items() if left_out)
    remedy = f"look at {decided}" if decided else None
    return [Problem(message, where=", ".join(source.counts.source for source in sources), key=key, remedy=remedy)]


def _hold_out(train: list[SourceRows], task: Task, share: float, seed: int) -> list[list[Example]]:
    """Take that share of the rows out of `train`: those of each source."""
    taken = held_out_rows([example for source in train for example in source.examples], task, share, seed)
    out = [[example for example in source.examples if example.where in taken] for source in train]
    for source in train:
        source.examples = [example for example in source.examples if example.where not in taken]
    return out


def _report(
    config: RunConfig,
    renderer: RowRenderer,
    train: Sequence[SourceRows],
    held_out: Sequence[SourceRows],
    examples: Sequence[Example],
    evaluation: Sequence[Example],
) -> DataReport:
    data = config.data
    targets = [length for source in train for length in source.target_lengths]
    repeated, seen = repetitions(examples, evaluation)
    unknown = _unknown(renderer.tokenizer)
    report = DataReport(
        train_rows=len(examples),
        eval_rows=len(evaluation),
        tokens=sum(example.tokens for example in examples),
        trained_tokens=sum(example.trained for example in examples),
        length=lengths_of([length for source in train for length in source.lengths]),
        max_length=data.max_length,
        sources=[source.counts for source in (*train, *held_out)],
        samples=[{"row": e.where, "text": renderer.marked(e)} for e in examples[:SAMPLES]],
        target_length=lengths_of(targets) if targets else None,
        classes=count_classes(renderer.labels, examples, evaluation),
        unknown_tokens=None if unknown is None else unknown_tokens(examples, unknown),
        repeated=repeated,
        seen=seen,
        contradicting=contradictions(examples, TASKS[config.task]),
    )
    sources = [*train, *held_out]
    keeps = _keeping(report, train)
    notes = *_notes(data, report, sources, keeps), *_unread(sources), *_seen_sources(train, held_out), *_undrawn(train)
    notes = *notes, *findings(report), *TASKS[config.task].notes_on(config, examples)
    return replace(report, notes=notes)


def _notes(data: DataSection, report: DataReport, sources: Sequence[SourceRows], keeps: str) -> Iterable[str]:
    for source in sources:
        yield from source.notes
        counts = source.counts
        if counts.overlength:
            why = _too_long(data, report, source, keeps)
            yield f"{counts.source}: {counts.overlength} of {counts.read} rows are {why}"
        if counts.in_part:
            many = counted(counts.in_part, "row has", "rows have")
            yield f"{counts.source}: {many} more tokens than its length says: so long a row is not counted to its end"
        if counts.untrained:
            rows = counted(counts.untrained, "row has", "rows have")
            yield f"{counts.source}: {rows} no trained token: left out"
        if counts.bad:
            first = source.problems[0]
            rows = counted(counts.bad, "bad row is skipped,", "bad rows are skipped, the first")
            yield f"{counts.source}: {rows} at {first.place}: {first.message}"
        for found in counts.findings:
            rows = counted(found.rows, "row")
            yield f"{counts.source}: in {rows} of {counts.read:,}, the first {found.first}, {found.what}"


def _unread(sources: Sequence[SourceRows]) -> Iterable[str]:
    """A sentence where rows say more than is read of them: a label beside plain text, say."""
    sources = [source for source in sources if source.unread]
    if not sources:
        return
    columns = list(dict.fromkeys(column.strip() or "(no name)" for source in sources for column in source.unread))
    paths = " and ".join(dict.fromkeys(source.counts.source for source in sources))
    formats = " and ".join(dict.fromkeys(source.counts.format for source in sources))
    besides = next((f"; {said}" for source in sources if (said := source.beside)), "")
    yield f"not read in {paths}, as rows of {formats}: {listed(columns)}{besides}"


def _keeping(report: DataReport, train: Sequence[SourceRows]) -> str:
    """The `data.max_length` that 99 of 100 training rows fit in; more, where others are not counted to their end."""
    uncounted, rows = sum(each.counts.in_part for each in train), sum(len(each.lengths) for each in train)
    return ("more than " if uncounted > 0.01 * rows else "") + str(report.length.keeps_99_percent)


def _too_long(data: DataSection, report: DataReport, source: SourceRows, keeps: str) -> str:
    """What rows of a source are longer than, and what would keep most of the training rows, by the keys that say so."""
    enough = "would keep 99 % of the training rows"
    longer = f"longer than data.max_length {data.max_length}"
    if report.target_length is None:
        return f"{longer} and are {source.counts.done}; {keeps} {enough}"
    key, most = data.target_limit
    said = f"longer than {key} {most} ({report.target_length.keeps_99_percent} {enough})"
    reasons = {
        f"their source is {longer} ({keeps} {enough})": any(length > data.max_length for length in source.lengths),
        f"their target is {said}": any(length > most for length in source.target_lengths),
    }
    return f"{source.counts.done}, for {' or '.join(reason for reason, is_so in reasons.items() if is_so)}"


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for text that a tokenizer does not know; None where it has none, or lends its name to another one."""
    unknown = tokenizer.unk_token_id
    lent = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return unknown if isinstance(unknown, int) and unknown not in lent else None


def _seen_sources(train: Sequence[SourceRows], held_out: Sequence[SourceRows]) -> Iterable[str]:
    """A sentence for each source that is trained and evaluated on."""
    trained = {(s.given.path, s.given.split or "train", s.given.name) for s in train}
    for source in held_out:
        if (source.given.path, source.given.split or "train", source.given.name) in trained:
            yield f"{source.given.path} is trained and evaluated on: its loss says nothing about new rows"


def _undrawn(train: Sequence[SourceRows]) -> Iterable[str]:
    """A sentence for each source whose weight leaves none of its rows."""
    for source in train:
        rows, weight = len(source.examples), source.given.weight
        if rows and not SourceSpan(0, rows, weight).drawn:
            yield f"{source.given.path}: weight {weight:g} of {counted(rows, 'row')} draws none, in any epoch"


def _fingerprint(parts: Iterable[Sequence[Example]], labels: Sequence[str]) -> str:
    digest = hashlib.sha256()
    if labels:  # rows have numbers, which mean other classes under other names
        digest.update(json.dumps(labels).encode())
    for examples in parts:  # the same row means another thing in training than in evaluation
        digest.update(array("q", [len(examples)]).tobytes())
        for example in examples:
            ends = -2 if example.desirable is None else -3 - example.desirable
            digest.update(array("q", [*example.input_ids, -1, *example.labels, ends]).tobytes())
    return digest.hexdigest()
