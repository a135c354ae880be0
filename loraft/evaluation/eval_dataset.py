"""Rows to evaluate on: where they come from, what each asks, and the tokens of its loss.

The rows are those of a file, or those that the run of what is evaluated held out. They become tokens as in training,
by the same function, with the template of what is evaluated; and what a row says is looked up by its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from loraft.adapters.metadata import SourceFormat
from loraft.config.schema import DataSection, DataSource, ModelSection, RunConfig, TaskName
from loraft.dataset.build import prepare
from loraft.dataset.source_rows import shortened, with_defaults
from loraft.errors import DataError, Problem
from loraft.evaluation.references import Reference, references_of
from loraft.evaluation.source_run import PastRun
from loraft.rows.formats import FORMATS, Message, has_columns
from loraft.rows.raw_rows import read_rows
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.examples import IGNORED, Example, PairExample
from loraft.tokenization.row_renderer import RowRenderer

__all__ = [
    "EvalExample",
    "EvalPurpose",
    "EvalSource",
    "EvaluatedRows",
    "prompt_ids",
    "read_source",
    "rows_of",
    "unasked_as_trained",
]  # fmt: skip

KEY = "--data"
OPTIONS = {
    "data": KEY, "data.train": KEY, "data.format": "--format", "data.split": "--split", "data.columns": "--columns",
    "data.source_lang": "--source-lang", "data.target_lang": "--target-lang",
}  # fmt: skip
"""What a key of a config is called on the command line of those who evaluate."""
MEND = "Mend the row, or leave it out."
PEEKED = 100
"""Rows whose columns are looked at before the run's names are taken for theirs."""


@dataclass(frozen=True)
class EvalPurpose:
    """What is evaluated is for this.

    Attributes:
        task: As a config says it.
        sources: How sources were rendered that it was trained with, in the languages that are asked for.
        labels: The classes that it tells apart; none where it writes text.
    """

    task: TaskName = "causal_lm"
    sources: SourceFormat = field(default_factory=SourceFormat)
    labels: tuple[str, ...] = ()


GENERATES = EvalPurpose()
"""A decoder that writes text."""


@dataclass(frozen=True)
class EvalSource:
    """The rows before they are tokens.

    Attributes:
        config: A config whose training rows, or whose held-out ones, they are.
        held_out: They are its held-out ones.
        called: What they are, in a few words.
        questions: What the rows that have a right answer ask, by their places.
        notes: What a person should know, a sentence each.
        run: The run that trained what is evaluated, where there is one.
    """

    config: RunConfig
    held_out: bool
    called: str
    questions: Mapping[str, Reference]
    notes: tuple[str, ...] = ()
    run: PastRun | None = None


@dataclass(frozen=True)
class EvalExample:
    """A row as it is evaluated.

    Attributes:
        example: Its tokens and those that its loss is of.
        question: What it asks; None where it has no right answer.
    """

    example: Example
    question: Reference | None


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of an evaluation.

    Attributes:
        items: They.
        renderer: What made their tokens.
        notes: What a person should know, a sentence each.
    """

    items: Sequence[EvalExample]
    renderer: RowRenderer
    notes: tuple[str, ...]


def read_source(
    run: PastRun | None, base: str, data: DataSource | None, purpose: EvalPurpose = GENERATES
) -> EvalSource:
    """Read the rows and what they ask; nothing is tokenized yet.

    Args:
        run: The run that trained what is evaluated, where there is one: its `data` section says how rows are read.
        base: The base model's name.
        data: The file; None takes the rows that the run held out.
        purpose: What is evaluated is for this.

    Raises:
        DataError: There are no rows, rows are not as they must be, or those that were held out can no longer be told.
    """
    try:
        return _read(run, base, data, purpose)
    except DataError as error:
        if data is None:
            raise
        raise DataError.several(map(_as_ours, error.problems)) from None


def _read(run: PastRun | None, base: str, data: DataSource | None, purpose: EvalPurpose) -> EvalSource:
    if data is None:
        if run is None:
            message = "there are no rows to evaluate on: what is evaluated belongs to no run"
            raise DataError(message, where=KEY, remedy="Name a file of rows, or evaluate a run, which holds some out.")
        if run.config.data.eval is None:
            message = "there are no rows to evaluate on: the run held none out (data.eval is null)"
            raise DataError(message, where=KEY, remedy="Name a file of rows.")
        notes = [*run.about_held_out()]
        config, called = _as_trained(run.config, purpose), "the run's held-out rows"
        sources = config.data.train if isinstance(config.data.eval, float) else config.data.eval or ()
        skips = config.data.on_bad_row == "skip"
    else:
        notes = [*run.about_rows(data)] if run is not None else []
        config = _config_for(run.config if run is not None else None, base, data, purpose)
        sources, skips, called = config.data.train, False, data.path
    questions: dict[str, Reference] = {}
    problems: list[Problem] = []
    for source in sources:
        found, wrong = references_of(with_defaults(source, config.data), config)
        questions |= found
        problems += [] if skips else wrong
    if problems:
        raise DataError.several(shortened(problems, remedy=None))
    if config.task == "seq_cls" and config.training.class_weights is not None:
        notes.append("the run weighted its classes in training (training.class_weights): here each row counts the same")
    return EvalSource(config, data is None, called, questions, tuple(notes), run)


def rows_of(
    source: EvalSource, tokenizer: PreTrainedTokenizerBase, *, positions: int | None, limit: int | None
) -> EvaluatedRows:
    """The rows as tokens, as they are in training, with the template of `tokenizer`.

    Args:
        source: The rows.
        tokenizer: That of what is evaluated, with its chat template.
        positions: How many positions the model tells apart; None where that has no end.
        limit: At most so many rows, the first ones.

    Raises:
        DataError: Rows cannot be rendered, or none is left.
    """
    data = source.config.data.model_copy(update={"chat_template": "auto"})
    if positions is not None and not source.held_out:
        data = data.model_copy(update={"max_length": min(data.max_length, positions)})
    try:
        prepared = prepare(source.config.model_copy(update={"data": data}), tokenizer)
    except DataError as error:
        if source.held_out:
            raise
        raise DataError.several(map(_as_ours, error.problems)) from None
    if source.held_out and source.run is not None:
        source.run.check_held_out(prepared.held_out)
    examples = prepared.eval if source.held_out else prepared.train
    last = {example.where: place for place, example in enumerate(examples)}  # of a conversation in one row a turn
    items = [
        EvalExample(example, source.questions.get(example.where) if last[example.where] == place else None)
        for place, example in enumerate(examples[:limit])
    ]
    told = prepared.report.notes
    if not source.held_out:  # they were prepared as if they were to be learned
        told = tuple(note.replace("training row", "row") for note in told)
    return EvaluatedRows(items, prepared.renderer, (*source.notes, *prepared.renderer.notes, *told))


def prompt_ids(item: EvalExample, renderer: RowRenderer) -> list[int]:
    """The tokens that an answer to a row follows: those that its loss was not of, up to its answer."""
    assert item.question is not None, "a row without a right answer asks nothing"
    if isinstance(item.example, PairExample):
        return item.example.input_ids
    asked = item.question.asked
    if not isinstance(asked, str):
        return renderer.prompt_ids(asked)
    labels = item.example.labels
    start = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
    if start == 0 and isinstance(renderer, CausalLMRenderer):  # every token is trained
        return replace(renderer, plain=True).prompt_ids([Message("user", asked)])
    return item.example.input_ids[:start]


def unasked_as_trained(rows: EvaluatedRows, system_prompt: str | None) -> Iterator[str]:
    """A sentence where rows lack the system prompt that was trained with: a row is evaluated as it stands."""
    asked = [item.question.asked for item in rows.items if item.question is not None]
    lacking = sum(not isinstance(turns, str) and all(turn.role != "system" for turn in turns) for turns in asked)
    if system_prompt and lacking:
        yield (
            f"{lacking:,} of {len(rows.items):,} rows have no system prompt, and it was trained with one: "
            "they are evaluated without, as they stand"
        )


def _config_for(run: RunConfig | None, base: str, data: DataSource, purpose: EvalPurpose) -> RunConfig:
    """A config that trains on the rows of `data` and holds none out; how they are read is as the run has it."""
    section = DataSection(train=(data,), eval=None, source_prefix=purpose.sources.prefix)
    if run is None:
        run = RunConfig(task=purpose.task, model=ModelSection(name_or_path=base), data=section)
    kept = {
        "train": section.train, "eval": None, "on_bad_row": "error", "split": None, "name": None, "streaming": False,
        **_own_names(data, run),
    }  # fmt: skip
    return _as_trained(run.model_copy(update={"data": run.data.model_copy(update=kept)}), purpose)


def _own_names(data: DataSource, run: RunConfig) -> dict[str, object]:
    """Takes back the run's columns and format where the file has no such columns: its own names tell then."""
    names = data.columns or run.data.columns
    row_format = run.data.format if data.format == "auto" else data.format
    if not names and row_format == "auto":
        return {}
    there = read_rows(data, PEEKED).columns
    formats = FORMATS[run.task] if row_format == "auto" else (row_format,)
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
    return config.model_copy(update={"data": data.model_copy(update=said)})


def _as_ours(problem: Problem) -> Problem:
    """A problem of rows as this command says it: by its options, and with what to do about a row."""
    key = OPTIONS.get(problem.key or "")
    remedy = problem.remedy or (None if key else MEND)
    message = problem.message
    for name in ("data.source_lang", "data.target_lang"):  # a row that lacks a language names who asked for it
        message = message.replace(name, OPTIONS[name])
    if remedy is not None:
        remedy = remedy.replace("data.columns", OPTIONS["data.columns"])
    return replace(problem, message=message, key=key or problem.key, remedy=remedy)
