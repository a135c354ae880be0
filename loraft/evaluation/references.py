"""What rows ask, and what answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraft.config.schema import DataSource, RunConfig
from loraft.dataset.source_rows import format_of
from loraft.errors import DataError, Problem
from loraft.rows.formats import (
    ClassificationRecord,
    Conversation,
    LanguagePair,
    Message,
    PromptCompletion,
    Record,
    Seq2SeqRecord,
    to_record,
)
from loraft.rows.raw_rows import read_rows
from loraft.tokenization.classification_rows import class_number

__all__ = ["Reference", "references_of"]


@dataclass(frozen=True)
class Reference:
    """What a row asks and what answers it.

    Attributes:
        asked: The row's prompt, source or text, or the turns before its last answer.
        reference: The right answer; of a text that is classified the name of its class.
        second: The second text where two are classified together.
    """

    asked: str | tuple[Message, ...]
    reference: str
    second: str | None = None

    @property
    def shown(self) -> object:
        """What is asked, as JSON shows it."""
        if isinstance(self.asked, str):
            return self.asked if self.second is None else [self.asked, self.second]
        return [{"role": message.role, "content": message.content} for message in self.asked]


def references_of(source: DataSource, config: RunConfig) -> tuple[dict[str, Reference], list[Problem]]:
    """What the rows of a source ask, by their places, and what is wrong with those that are no such rows."""
    read = read_rows(source)
    problems, questions = list(read.problems), {}
    if not read.rows:
        return {}, problems
    row_format = format_of(read, source, config.task)
    languages = LanguagePair(config.data.source_lang, config.data.target_lang)
    for row in read.rows:
        try:
            record = to_record(row, row_format, source.columns, config.task, languages)
            question = _question(record, config.data.labels)
        except DataError as error:
            if error.problems[0].key in ("data.source_lang", "data.target_lang"):  # every row would say so
                raise
            problems += [_at(row.where, each, source.columns) for each in error.problems]
            continue
        if question is not None:
            questions[row.where] = question
    return questions, problems


def _at(where: str, problem: Problem, columns: Mapping[str, str]) -> Problem:
    """A problem of a row with its place, by the name that the file gives the field."""
    if problem.where is not None:
        return problem
    return replace(problem, where=where, key=columns.get(problem.key or "", problem.key))


def _question(record: Record, labels: Sequence[str]) -> Reference | None:
    """What a record asks, and its answer: the assistant's last turn, or the completion; plain text asks nothing.

    Raises:
        DataError: Its class is none of the labels.
    """
    if isinstance(record, PromptCompletion):
        return Reference(record.prompt, record.completion)
    if isinstance(record, Seq2SeqRecord):
        return Reference(record.source, record.target)
    if isinstance(record, ClassificationRecord):
        return Reference(record.text, labels[class_number(record.label, labels)], record.second)
    if not isinstance(record, Conversation):
        return None
    last = max(place for place, message in enumerate(record.messages) if message.role == "assistant")
    return Reference(record.messages[:last], record.messages[last].content) if last else None
