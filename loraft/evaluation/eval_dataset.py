"""Rows to evaluate on: where they come from, what each asks, and the tokens of its loss.

The rows are those of a file, or those that the run of what is evaluated held out. They become tokens as in training,
by the same function, with the template of what is evaluated; and what a row says is looked up by its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSection, DataSource, ModelSection
from loraft.dataset.build import prepare
from loraft.dataset.source_rows import ReadSources, SourceRows, expand_sources, read_source, read_sources, refuse_rows
from loraft.dataset.tokenize_rows import placed
from loraft.errors import DataError, Problem
from loraft.evaluation.past_run import PastRun
from loraft.figures import counted
from loraft.rows.fields import columns_of, has_columns
from loraft.rows.raw_rows import read_rows
from loraft.tasks import TASKS
from loraft.tasks.task import Reference, Task
from loraft.tasks.training_metadata import SourceFormat
from loraft.tokenization.examples import Example, RowRenderer

Questions = Mapping[str, Reference]
"""What the rows of one source ask, by their places: another source may have rows of the same places."""


@dataclass(frozen=True)
class EvalPurpose:
    """What an evaluation is of; with a `baseline` the base is measured too, and with a `limit` the first rows alone."""

    task: Task
    sources: SourceFormat
    labels: tuple[str, ...] = ()
    baseline: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class EvalSource:
    """The rows before they are tokens, and what those of each source that have a right answer ask.

    Attributes:
        config: A config whose training rows, or whose held-out ones, they are.
        read: Its sources as records, which become tokens once.
    """

    config: RunConfig
    read: ReadSources
    held_out: bool
    called: str
    questions: Sequence[Questions]
    notes: tuple[str, ...]
    run: PastRun | None
    purpose: EvalPurpose


@dataclass(frozen=True)
class EvalExample:
    """A row as it is evaluated, and what it asks; None where it has no right answer."""

    example: Example
    question: Reference | None


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of an evaluation, as tokens.

    Attributes:
        learned: The training rows beside which the run held these out; of a stream those of its beginning.
    """

    items: Sequence[EvalExample]
    called: str
    purpose: EvalPurpose
    renderer: RowRenderer
    notes: tuple[str, ...]
    learned: Sequence[Example] = ()

    @property
    def references(self) -> list[str]:
        """The right answers of those rows that have one."""
        return [item.question.reference for item in self.items if item.question is not None]

    def prompt_ids(self, item: EvalExample) -> list[int]:
        """The tokens that an answer to a row follows: those that its loss was not of, up to its answer."""
        assert item.question is not None, "a row without a right answer asks nothing"
        return self.purpose.task.prompt_ids(item.example, item.question, self.renderer)


def read_eval_source(run: PastRun | None, base: str, data: DataSource | None, purpose: EvalPurpose) -> EvalSource:
    """Read the rows of a file, or those that the run held out, and what they ask; nothing is tokenized yet.

    The `data` section of the run that trained what is evaluated, where there is one, says how rows are read.
    """
    if data is None:
        return _held_out(run, purpose)
    if run is not None and data.text_by == "auto":
        data = data.model_copy(update={"text_by": run.config.data.text_by})
    with _mendable():
        notes = run.about_rows(data) if run is not None else ()
        rows = read_rows(data)
        purpose = replace(purpose, task=_task_of_rows(purpose.task, run, data, rows.columns))
        config = _config_for(run.config if run is not None else None, base, data, rows.columns, purpose)
        (given,), _ = expand_sources(config.data)
        source = read_source(given, config, rows)
        read = ReadSources([source], [], source.problems)
        return _asking(config, read, data.path, (*notes, *_weighted(config, purpose)), run, purpose)


def _held_out(run: PastRun | None, purpose: EvalPurpose) -> EvalSource:
    """The rows that a run held out.

    Raises:
        DataError: There are none, or they cannot be told or read any more.
    """
    if run is None:
        message = "there are no rows to evaluate on: what is evaluated belongs to no run"
        remedy = "Name a file of rows, or evaluate a run, which holds some out."
        raise DataError(message, parameter="data", remedy=remedy)
    if run.config.data.eval is None:
        message = "there are no rows to evaluate on: the run held none out (data.eval is null)"
        raise DataError(message, parameter="data", remedy="Name a file of rows.")
    config = _as_trained(run.config, purpose)
    notes = (*run.about_held_out(), *_weighted(config, purpose))
    return _asking(config, read_sources(config), "the run's held-out rows", notes, run, purpose, held_out=True)


def learned_source(run: PastRun, purpose: EvalPurpose) -> EvalSource:
    """The rows that a run learned, to be read by what it trained.

    Raises:
        DataError: They cannot be read.
    """
    config = _as_trained(run.config, purpose)
    return _asking(config, read_sources(config), "the run's training rows", (), run, purpose)


def _asking(
    config: RunConfig, read: ReadSources, called: str, notes: tuple[str, ...], run: PastRun | None,
    purpose: EvalPurpose, *, held_out: bool = False,
) -> EvalSource:  # fmt: skip
    """Rows that were read, with what they ask.

    Raises:
        DataError: Some cannot be read, or have a class that is none of the labels.
    """
    apart = held_out and not isinstance(config.data.eval, float)
    questions, unanswered = questions_of(read.held_out if apart else read.train, config)
    refuse_rows([*read.problems, *([] if config.data.on_bad_row == "skip" else unanswered)])
    return EvalSource(config, read, held_out, called, questions, notes, run, purpose)


def _weighted(config: RunConfig, purpose: EvalPurpose) -> Iterator[str]:
    """A sentence where rows counted otherwise in training."""
    if config.training.class_weights is not None and purpose.labels:
        yield "the run weighted its classes in training (training.class_weights): here each row counts the same"


def _task_of_rows(own: Task, run: PastRun | None, data: DataSource, columns: Collection[str]) -> Task:
    """The task that rows are of: what was trained, where they are such rows, else the one that its answers are of."""
    if own.evaluated_as == own.name:
        return own
    known = {column for each in own.formats for column in columns_of(each)}
    named = data.columns or (run.columns if run is not None else {})
    renamed = {ours: theirs for ours, theirs in named.items() if ours in known}
    if data.format != "auto":
        is_own = data.format in own.formats
    else:  # the names that are given must all be of one format
        fitting = [each for each in own.formats if data.columns.keys() <= {*columns_of(each)}]
        is_own = any(has_columns(columns, each, names) for each in fitting for names in (renamed, {}))
    return own if is_own else TASKS[own.evaluated_as]


def questions_of(sources: Sequence[SourceRows], config: RunConfig) -> tuple[list[Questions], list[Problem]]:
    """What the rows of each source ask, and what is wrong with those whose class is none of the labels."""
    task, asked, problems = TASKS[config.task], list[Questions](), list[Problem]()
    for source in sources:
        found = dict[str, Reference]()
        asked.append(found)
        for record, place in zip(source.records, source.places, strict=True):
            try:
                reference = task.reference(record, config.data.labels)
                if reference is not None:
                    found[place] = reference
            except DataError as error:
                problems += placed(error, place, source.given.columns)
    return asked, problems


def rows_of(source: EvalSource, tokenizer: PreTrainedTokenizerBase, *, positions: int | None) -> EvaluatedRows:
    """The rows as tokens, as they are in training, with the template of `tokenizer`.

    `positions` is how many the model tells apart; None where that has no end.
    """
    data = source.config.data.model_copy(update={"chat_template": "auto"})
    if positions is not None and not source.held_out:
        data = data.model_copy(update={"max_length": min(data.max_length, positions)})
    may_answer = any(each.counts.format != "text" for each in (*source.read.train, *source.read.held_out))
    with nullcontext() if source.held_out else _mendable():
        prepared = prepare(source.config.model_copy(update={"data": data}), tokenizer, read=source.read)
    if source.held_out and source.run is not None:
        source.run.check_held_out(prepared.held_out)
    examples, counts = prepared.train, [each.stop - each.start for each in prepared.train_sources]
    if source.held_out:
        examples, counts = prepared.eval, [*prepared.eval_counts]
    said = prepared.renderer.said  # as answers are compared: without thoughts
    questions = [
        {place: replace(each, reference=said(each.reference)) for place, each in asked.items()}
        for asked in source.questions
    ]
    items = with_questions(examples, counts, questions)[: source.purpose.limit]
    told = prepared.report.notes
    if not source.held_out:  # they were prepared as if they were to be learned
        told = tuple(note.replace("training row", "row") for note in told)
    notes = (*source.notes, *prepared.renderer.notes, *told, *_without_answer(items, may_answer=may_answer))
    learned = prepared.train if source.held_out else ()
    rows = EvaluatedRows(items, source.called, source.purpose, prepared.renderer, notes, learned)
    if positions is None or not source.purpose.task.metrics.offered:
        return rows
    return _within(positions, rows, {row.where for row in examples if len(row.input_ids) >= data.max_length})


def _within(positions: int, rows: EvaluatedRows, cut: Collection[str]) -> EvaluatedRows:
    """The rows, of which those ask nothing whose prompt the model cannot read: among those at `cut` places, if any.

    Of a row that was cut a beginning is read, and of the prompt of its last answer all.
    """
    items = [
        replace(item, question=None)
        if item.question is not None and item.example.where in cut and len(rows.prompt_ids(item)) > positions
        else item
        for item in rows.items
    ]
    beyond = sum(item.question is None for item in items) - sum(item.question is None for item in rows.items)
    if not beyond:
        return rows
    note = f"{counted(beyond, 'row')} of {len(items):,} would be asked with more tokens than the {positions:,} "
    note += "positions of the model: only their loss is measured"
    return replace(rows, items=items, notes=(*rows.notes, note))


def with_questions(
    examples: Iterable[Example], counts: Sequence[int], questions: Sequence[Questions]
) -> list[EvalExample]:
    """Rows with what they ask: of each source so many, in order, by their places."""
    items, left = list[EvalExample](), iter(examples)
    for count, asked in zip(counts, questions, strict=True):
        rows = list(islice(left, count))
        last = {row.where: place for place, row in enumerate(rows)}  # of a conversation in one row a turn
        items += [
            EvalExample(row, asked.get(row.where) if last[row.where] == place else None)
            for place, row in enumerate(rows)
        ]
    return items


def _without_answer(items: Sequence[EvalExample], *, may_answer: bool) -> Iterator[str]:
    """A sentence where some rows have no right answer; where none has, of rows whose format has one."""
    rows = {item.example.where for item in items}
    asked = {item.example.where for item in items if item.question is not None}
    if len(asked) < len(rows) and (asked or may_answer):
        lacking = f"{len(rows) - len(asked):,} of {len(rows):,} rows have no" if asked else "no row has a"
        measured = "what is measured of answers is of the others" if asked else "only the loss is measured"
        yield f"{lacking} right answer in words, as where tools are called or thoughts stand apart: {measured}"


def unasked_as_trained(rows: EvaluatedRows, system_prompt: str | None) -> Iterator[str]:
    """A sentence where rows lack the system prompt that was trained with: a row is evaluated as it stands."""
    asked = [item.question.asked for item in rows.items if item.question is not None]
    lacking = sum(not isinstance(turns, str) and all(turn.role != "system" for turn in turns) for turns in asked)
    if system_prompt and lacking:
        yield (
            f"{lacking:,} of {len(rows.items):,} rows have no system prompt, and it was trained with one: "
            "they are evaluated without, as they stand"
        )


def _config_for(
    run: RunConfig | None, base: str, data: DataSource, columns: Collection[str], purpose: EvalPurpose
) -> RunConfig:
    """A config that trains on the rows of `data` and holds none out; how they are read is as the run has it."""
    section = DataSection(train=(data,), eval=None, source_prefix=purpose.sources.prefix)
    if run is None:
        run = RunConfig(task=purpose.task.name, model=ModelSection(name_or_path=base), data=section)
    kept = {
        "train": section.train, "eval": None, "on_bad_row": "error", "split": None, "name": None, "limit": None,
        "streaming": False, **_own_names(data, columns, run),
    }  # fmt: skip
    return _as_trained(run.model_copy(update={"data": run.data.model_copy(update=kept)}), purpose)


def _own_names(data: DataSource, there: Collection[str], run: RunConfig) -> dict[str, object]:
    """Takes back the run's columns and format where the file has no such columns: its own names tell then."""
    names = data.columns or run.data.columns
    row_format = run.data.format if data.format == "auto" else data.format
    if not names and row_format == "auto":
        return {}
    formats = TASKS[run.task].formats if row_format == "auto" else (row_format,)
    fits = any(has_columns(there, each, names) for each in formats)
    return {} if fits else {"columns": {}, "format": "auto"}


def _as_trained(config: RunConfig, purpose: EvalPurpose) -> RunConfig:
    """A config with the languages that are asked for, and the classes that there are."""
    data = config.data
    said = {
        "labels": purpose.labels or data.labels,
        "source_lang": purpose.sources.source_lang or data.source_lang,
        "target_lang": purpose.sources.target_lang or data.target_lang,
    }
    return config.model_copy(update={"task": purpose.task.name, "data": data.model_copy(update=said)})


@contextmanager
def _mendable() -> Iterator[None]:
    """Problems of rows that are given, with what to do about each; of the source as a whole there is no more to say."""
    try:
        yield
    except DataError as error:
        raise DataError.several(
            problem
            if problem.remedy or (problem.key or "").partition(".")[0] == "data"
            else replace(problem, remedy="Mend the row, or leave it out.")
            for problem in error.problems
        ) from None
