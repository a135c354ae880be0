"""Rows to evaluate on: where they come from, what each asks, and the tokens of its loss.

The rows are those of a file, or those that the run of what is evaluated held out. They become tokens as in training,
by the same function, with the template of what is evaluated; and what a row says is looked up by its place.

This module knows configs, records and examples. It refuses to know models and figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import DataSection, DataSource, ModelSection, RunConfig
from loraft.data.examples import IGNORED, Example
from loraft.data.formats import Completion, Conversation, Message, Record, detect_format, to_record
from loraft.data.prepare import prepare, with_defaults
from loraft.data.records import read_rows
from loraft.data.rendering import RowRenderer
from loraft.data.tokenize import Renderer
from loraft.errors import DataError, Problem

__all__ = ["EvaluatedRows", "Item", "Question", "Source", "prompt_ids", "read_source", "rows_of", "unasked_as_trained"]

KEY = "--data"
MEND = "Mend the row, or leave it out."
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Question:
    """What a row asks and what answers it.

    Attributes:
        asked: The row's prompt, or the turns before its last answer.
        reference: The right answer.
    """

    asked: str | tuple[Message, ...]
    reference: str

    @property
    def shown(self) -> object:
        """What is asked, as JSON shows it."""
        if isinstance(self.asked, str):
            return self.asked
        return [{"role": message.role, "content": message.content} for message in self.asked]


@dataclass(frozen=True)
class Source:
    """The rows before they are tokens.

    Attributes:
        config: A config whose training rows, or whose held-out ones, they are.
        held_out: They are its held-out ones.
        called: What they are, in a few words.
        questions: What the rows that have a right answer ask, by their places.
    """

    config: RunConfig
    held_out: bool
    called: str
    questions: Mapping[str, Question]


@dataclass(frozen=True)
class Item:
    """A row as it is evaluated.

    Attributes:
        example: Its tokens and those that its loss is of.
        question: What it asks; None where it has no right answer.
    """

    example: Example
    question: Question | None


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows of an evaluation.

    Attributes:
        items: They.
        renderer: What made their tokens.
        notes: What a person should know, a sentence each.
    """

    items: Sequence[Item]
    renderer: RowRenderer
    notes: tuple[str, ...]


def read_source(run: RunConfig | None, base: str, data: DataSource | None) -> Source:
    """Read the rows and what they ask; nothing is tokenized yet.

    Args:
        run: The config that trained what is evaluated, where there is one: its `data` section says how rows are read.
        base: The base model's name.
        data: The file; None takes the rows that the run held out.

    Raises:
        DataError: There are no rows, or rows are not as they must be; every one is named.
    """
    try:
        return _read(run, base, data)
    except DataError as error:
        if data is None:
            raise
        raise DataError.several(map(_as_ours, error.problems)) from None


def _read(run: RunConfig | None, base: str, data: DataSource | None) -> Source:
    if data is None:
        if run is None:
            message = "there are no rows to evaluate on: what is evaluated belongs to no run"
            raise DataError(message, where=KEY, remedy="Name a file of rows, or evaluate a run, which holds some out.")
        if run.data.eval is None:
            message = "there are no rows to evaluate on: the run held none out (data.eval is null)"
            raise DataError(message, where=KEY, remedy="Name a file of rows.")
        sources = run.data.train if isinstance(run.data.eval, float) else run.data.eval
        skips = run.data.on_bad_row == "skip"
        config, called = run, "the run's held-out rows"
    else:
        config = _config_for(run, base, data)
        sources, skips, called = config.data.train, False, data.path
    questions: dict[str, Question] = {}
    problems: list[Problem] = []
    for source in sources:
        found, wrong = _questions(with_defaults(source, config.data))
        questions |= found
        problems += [] if skips else wrong
    if problems:
        raise DataError.several(_shortened(problems))
    return Source(config, data is None, called, questions)


def rows_of(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, positions: int | None, limit: int | None
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
    examples = prepared.eval if source.held_out else prepared.train
    items = [Item(example, source.questions.get(example.where)) for example in examples[:limit]]
    return EvaluatedRows(items, prepared.renderer, (*prepared.renderer.notes, *prepared.report.notes))


def prompt_ids(item: Item, renderer: RowRenderer) -> list[int]:
    """The tokens that an answer to a row follows: those that its loss was not of, up to its answer.

    Plain text is cut before its first trained token, so that a token across the border between prompt and completion
    is the answer's, as in training.
    """
    assert item.question is not None, "a row without a right answer asks nothing"
    asked = item.question.asked
    if not isinstance(asked, str):
        return renderer.prompt_ids(asked)
    labels = item.example.labels
    start = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
    if start == 0 and isinstance(renderer, Renderer):  # every token is trained
        return replace(renderer, template=None).prompt_ids([Message("user", asked)])
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


def _config_for(run: RunConfig | None, base: str, data: DataSource) -> RunConfig:
    """A config that trains on the rows of `data` and holds none out; how they are read is as the run has it."""
    section = DataSection(train=(data,), eval=None)
    if run is None:
        return RunConfig(model=ModelSection(name_or_path=base), data=section)
    kept = {"train": section.train, "eval": None, "on_bad_row": "error", "split": None, "name": None}
    return run.model_copy(update={"data": run.data.model_copy(update=kept)})


def _questions(source: DataSource) -> tuple[dict[str, Question], list[Problem]]:
    """What the rows of a source ask, by their places; and what is wrong with those that are no such rows."""
    read = read_rows(source)
    problems, questions = list(read.problems), {}
    if not read.rows:
        return {}, problems
    row_format = detect_format(read.columns, source.columns) if source.format == "auto" else source.format
    for row in read.rows:
        try:
            question = _question(to_record(row, row_format, source.columns))
        except DataError as error:
            problems += error.problems
            continue
        if question is not None:
            questions[row.where] = question
    return questions, problems


def _question(record: Record) -> Question | None:
    """What a record asks, and its answer: the assistant's last turn, or the completion; plain text asks nothing."""
    if isinstance(record, Completion):
        return Question(record.prompt, record.completion)
    if not isinstance(record, Conversation):
        return None
    last = max(place for place, message in enumerate(record.messages) if message.role == "assistant")
    return Question(record.messages[:last], record.messages[last].content) if last else None


def _as_ours(problem: Problem) -> Problem:
    """A problem of rows as this command says it: by its options, and with what to do about a row."""
    key = {"data": KEY, "data.train": KEY, "data.format": "--format", "data.split": "--split"}.get(problem.key or "")
    remedy = problem.remedy or (None if key else MEND)
    return replace(problem, key=key or problem.key, remedy=remedy)


def _shortened(problems: Sequence[Problem]) -> list[Problem]:
    more = len(problems) - SHOWN_PROBLEMS
    return [*problems[:SHOWN_PROBLEMS], *([Problem(f"and {more} more problems like these")] if more > 0 else [])]
