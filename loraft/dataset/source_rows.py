"""The sources of a run: their rows read, recognised, turned into tokens, and put down to be taken up again."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from loraft.config.choices import RowFormat
from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection, DataSource
from loraft.dataset.statistics import Finding, SourceCounts
from loraft.dataset.tokenize_rows import TokenizedRow, length_policy, processes_for, tokenized
from loraft.errors import DataError, InvalidInputError, Problem
from loraft.rows.fields import columns_of, unread_columns
from loraft.rows.formats import LanguagePair, Record
from loraft.rows.other_names import beside_text
from loraft.rows.raw_rows import RowsRead, read_rows
from loraft.rows.turn_keys import unread_keys
from loraft.tasks import TASKS, check_format, check_names, detect_format
from loraft.tasks.task import Task
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer

EVAL_STREAM = 0x5EED
"""Keeps the draw of the held-out rows apart from the order of epochs, which has the same seed."""


def held_out_rows(examples: Sequence[Example], task: Task, share: float, seed: int) -> frozenset[str]:
    """The places of the rows to hold out.

    Rows of the same input are on one side, pieces of one row too. Of each class the same share is held out, at least
    one row where `share` is enough for that, and one at least is left to train on.

    Raises:
        DataError: There are fewer than two rows.
    """
    inputs: dict[str, hashlib.blake2b] = {}
    classes: dict[str, int] = {}
    for example in examples:
        tokens = array("q", [*example.input_ids, -1]).tobytes()
        inputs.setdefault(example.where, hashlib.blake2b(digest_size=16)).update(tokens)
        if (number := task.class_number(example)) is not None:
            classes[example.where] = number
    rows = sorted(inputs)
    random = np.random.Generator(np.random.PCG64([seed, EVAL_STREAM]))
    groups: dict[bytes, list[str]] = {}
    for index in random.permutation(len(rows)):
        groups.setdefault(inputs[rows[index]].digest(), []).append(rows[index])
    if len(rows) < 2:
        message = "one row cannot be shared between training and evaluation"
        raise DataError(message, key="data.eval", remedy="write data.eval: null")
    # Where all rows are the same there is nothing to keep apart.
    together = list(groups.values()) if len(groups) > 1 else [[row] for row in rows]
    most = min(max(1, round(share * len(rows))), len(rows) - 1)
    taken: list[str] = []
    for group in _in_turn(together, classes):
        if len(taken) + len(group) <= most:
            taken += group
    if not taken:  # where none fits into the share, as few as can be
        _, taken = min((len(group), group) for group in together)
    return frozenset(taken)


def _in_turn(groups: Sequence[list[str]], classes: dict[str, int]) -> list[list[str]]:
    """Groups in the order in which they are held out.

    First one group of each class, then always one of the class of which the smallest share is held out so far.
    """
    of_class: dict[int | None, list[list[str]]] = {}
    for group in groups:
        of_class.setdefault(classes.get(group[0]), []).append(group)
    if len(of_class) == 1:
        return list(groups[:-1])
    largest_first = sorted(of_class.values(), key=len, reverse=True)
    turns = [
        (0.0 if place == 0 else (place + 0.5) / len(members), number, member)
        for number, members in enumerate(largest_first)
        for place, member in enumerate(members[:-1])  # the last one is left to train on
    ]
    return [member for _, _, member in sorted(turns, key=lambda turn: turn[:2])]


def digest_of_draw(examples: Sequence[Example]) -> str:
    """What tells one draw of held-out rows from another: a sha256 over their places."""
    return hashlib.sha256("\n".join(sorted({example.where for example in examples})).encode()).hexdigest()


SHOWN_PROBLEMS = 20
NAMED_EACH = 3
"""So many problems of one kind are named one by one."""
SAMPLED = 1000
"""Rows of each source that are looked at before a stream begins."""
OF_A_ROW = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,]*")
FILE_OF_PLACE = re.compile(r"(:\d+|: row \d+)$")
LEAVE_OUT = "data.on_bad_row: skip leaves bad rows out and counts them"
DONE = {"drop": "dropped", "truncate": "truncated", "split": "split", "error": "–"}


@dataclass
class SourceRows:
    """A source on its way.

    Attributes:
        given: What the config says of it, the defaults of its section filled in.
        records: What its good rows say, until they are tokens.
        places: Where each of these stands.
        examples: What is left of them as tokens.
        lengths: The tokens of each record, before any is cut; of its source where there is a target.
        problems: What is wrong with its bad rows.
        unread: The columns, and the keys of turns and of objects, that nothing is read from.
        notes: What there is to say about where its rows come from, a sentence each.
    """

    given: DataSource
    counts: SourceCounts
    records: list[Record] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    target_lengths: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def beside(self) -> str | None:
        """What stands beside a text that is learned alone, and the keys that would have it learned."""
        text = self.given.columns.get("text", "text")
        found = beside_text(self.unread, text) if self.counts.format == "text" else None
        if found is None or not found.columns:
            return found and found.said
        columns = ", ".join(f"{ours}: {theirs}" for ours, theirs in found.columns.items())
        return f"{found.said}: data.format: {found.format} and data.columns: {{{columns}}}"


SOURCE, LEARNED = TypeAdapter(SourceRows), TypeAdapter(DatasetFacts)
NOT_KEPT = {"given", "records", "places", "examples"}


def to_cache(
    train: Sequence[SourceRows], held_out: Sequence[SourceRows], learned: DatasetFacts
) -> tuple[list[Example], dict[str, Any]]:
    """All examples, and the rest as JSON holds it, with the first problem of each source."""
    given = (*train, *held_out)
    kept = (replace(source, problems=source.problems[:1], records=[], examples=[]) for source in given)
    dumped = (SOURCE.dump_python(each, mode="json", exclude=NOT_KEPT) for each in kept)
    sources = [{**each, "examples": len(source.examples)} for each, source in zip(dumped, given, strict=True)]
    examples = [example for source in given for example in source.examples]
    return examples, {"sources": sources, "learned": asdict(learned)}


def from_cache(
    examples: list[Example], facts: dict[str, Any], given: Sequence[DataSource], given_held: Sequence[DataSource]
) -> tuple[list[SourceRows], list[SourceRows], DatasetFacts]:
    """What `to_cache` gave, as it was."""
    sources, left = [], iter(examples)
    for source, kept in zip((*given, *given_held), facts["sources"], strict=True):
        found = SOURCE.validate_python({**kept, "given": source, "examples": []})
        sources.append(replace(found, examples=list(islice(left, kept["examples"]))))
    return sources[: len(given)], sources[len(given) :], LEARNED.validate_python(facts["learned"])


@dataclass
class ReadSources:
    """The sources of a run as records; none are held out where a share of the rows is.

    Attributes:
        problems: What must not be: whole sources that cannot be read, and bad rows where these are errors.
    """

    train: list[SourceRows]
    held_out: list[SourceRows]
    problems: list[Problem]


def read_sources(config: RunConfig) -> ReadSources:
    """Read every source; of those that are streamed the first rows alone, which stand for the others."""
    given, given_held = expand_sources(config.data)
    most = SAMPLED if config.data.streaming else None
    problems: list[Problem] = []
    train = _read_all(given, config, problems, most)
    return ReadSources(train, _read_all(given_held, config, problems), problems)


def _read_all(
    sources: Sequence[DataSource], config: RunConfig, problems: list[Problem], most: int | None = None
) -> list[SourceRows]:
    found = []
    for given in sources:
        try:
            source = read_source(given, config, read_rows(given, most))
        except InvalidInputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        if config.data.on_bad_row == "error" and source.problems:
            *others, last = source.problems  # the last one says what can be done about all, where nothing else is
            problems += [*others, last if last.remedy else replace(last, remedy=f"Mend it; or {LEAVE_OUT}.")]
        found.append(source)
    return found


def with_defaults(source: DataSource, data: DataSection) -> DataSource:
    """`source` with what the section says for every source that does not say its own."""
    own = {key: getattr(source, key) or getattr(data, key) for key in ("split", "name", "columns", "limit")}
    for key in ("format", "text_by"):
        own[key] = getattr(data if getattr(source, key) == "auto" else source, key)
    return source.model_copy(update=own)


def expand_sources(data: DataSection) -> tuple[list[DataSource], list[DataSource]]:
    """The sources to train on and those to evaluate on, `with_defaults`; of a share held out there are none."""
    train, held_out = ([with_defaults(source, data) for source in part] for part in (data.train, data.eval_sources))
    return train, held_out


def read_source(given: DataSource, config: RunConfig, read: RowsRead) -> SourceRows:
    """The rows of a source, `with_defaults`, as records.

    Raises:
        DataError: What is wrong with the source as a whole, or with all of its rows.
    """
    task = TASKS[config.task]
    row_format = format_of(read, given, task)
    counts = SourceCounts(given.path, row_format, read=len(read.rows) + len(read.problems))
    unread = dict.fromkeys(unread_columns(read.columns, row_format, given.columns, as_pair=task.translates))
    idle = [name for name in given.columns if name not in columns_of(row_format)]
    told = [f"{given.path}: data.columns: {', '.join(idle)} is not read of rows of {row_format}"] if idle else []
    source = SourceRows(given, counts, problems=list(read.problems), notes=[*read.notes, *told])
    languages = LanguagePair(config.data.source_lang, config.data.target_lang)
    for row in read.rows:
        try:
            source.records.append(task.record(row, row_format, given.columns, languages))
            source.places.append(row.where)
            unread |= dict.fromkeys(unread_keys(row, row_format, given.columns))
        except DataError as error:
            if error.problems[0].where is None:  # it is the config's fault, and every row would say so
                raise
            source.problems += error.problems
    source.unread = tuple(unread)
    if not source.records and len({(each.message, each.key) for each in source.problems}) == 1 < len(source.problems):
        first = source.problems[0]
        raise DataError.several([replace(first, message=f"{first.message} (as in all {len(source.problems)} rows)")])
    return source


def format_of(read: RowsRead, given: DataSource, task: Task) -> RowFormat:
    """The format of rows that were read; an error says that they are of none that the task takes."""
    try:
        row_format = given.format
        if row_format == "auto":
            row_format = detect_format(read.columns, task, given.columns)
        check_format(row_format, task)
        check_names(given.columns, task)
    except DataError as error:
        if not read.rows:
            raise DataError.several(shortened(read.problems)) from None
        raise DataError.several([replace(error.problems[0], where=given.path)]) from None
    return row_format


def tokenize_source(source: SourceRows, data: DataSection, renderer: RowRenderer) -> list[Problem]:
    """Turn the records of `source` into examples that fit, and return what must not be."""
    wanted = length_policy(source.given, data, source.counts.format)
    processes = processes_for(data.num_proc, len(source.records))
    found = tokenized(renderer, source.records, source.places, wanted, processes)
    places, source.records, source.places = source.places, [], []
    unrendered = [problem for outcome in found for problem in outcome.problems]
    source.problems += unrendered
    source.counts.bad = len(source.problems)
    source.lengths = [length for outcome in found for length in outcome.lengths]
    source.target_lengths = [length for outcome in found for length in outcome.target_lengths]
    source.counts.findings = findings_of(found, places)
    source.examples = [example for outcome in found for example in outcome.examples]
    too_long = [outcome.too_long for outcome in found if outcome.too_long is not None]
    if too_long:
        source.counts.overlength = len(too_long)
        source.counts.in_part = sum(outcome.in_part for outcome in found)
        source.counts.done = DONE[wanted.done]
    source.counts.untrained = sum(outcome.untrained for outcome in found)
    source.counts.kept = len(source.examples)
    refused = unrendered if data.on_bad_row == "error" else []
    return [*refused, *(too_long if wanted.done == "error" else [])]


def findings_of(found: Sequence[TokenizedRow], places: Sequence[str]) -> list[Finding]:
    """What was found, with how many rows it is so of and the first of them."""
    rows: dict[str, list[str]] = {}
    for outcome, place in zip(found, places, strict=True):
        for finding in outcome.findings:
            rows.setdefault(finding, []).append(place)
    return [Finding(what, len(where), where[0]) for what, where in rows.items()]


def shortened(problems: Sequence[Problem], remedy: str | None = LEAVE_OUT) -> list[Problem]:
    """Problems of rows, those of one kind as the first of them with their count, and no more than a screen of kinds.

    `remedy` says what can be done about those that are not shown.
    """
    kinds: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(_kind(problem), []).append(problem)
    found: list[Problem] = []
    for kind in kinds.values():
        first, way_out = kind[0], next((each.remedy for each in kind if each.remedy), None)
        message = f"{first.message} (so in {len(kind):,} rows, this the first)"
        found += [replace(first, message=message, remedy=way_out)] if len(kind) > NAMED_EACH else kind
    if len(found) <= SHOWN_PROBLEMS:
        return found
    more = len(found) - SHOWN_PROBLEMS
    return [*found[:SHOWN_PROBLEMS], Problem(f"and {more} more problems like these", remedy=remedy)]


def refuse_rows(problems: Sequence[Problem]) -> None:
    """Refuse rows in which something is wrong, if there are such.

    Raises:
        DataError: There are, with their problems `shortened`.
    """
    if problems:
        raise DataError.several(shortened(problems, remedy=None))


def _kind(problem: Problem) -> tuple[str, ...]:
    """What problems of one kind have in common: all but places, numbers and what a row says."""
    said = (problem.message, problem.key or "", FILE_OF_PLACE.sub("", problem.where or ""))
    return tuple(OF_A_ROW.sub("", each) for each in said[:2]) + said[2:]
