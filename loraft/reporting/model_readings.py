"""What one model makes of the rows of a report, and of its general text: read once, and kept as plain numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar

from loraft.evaluation.eval_dataset import EvalExample, EvaluatedRows
from loraft.evaluation.evaluator import Answer, EvalModel, RowScore
from loraft.events import Observer, Progress
from loraft.io.resources import memory_errors
from loraft.tokenization.examples import Example, RowRenderer

GENERAL_TEXT = files("loraft.reporting") / "general_text.txt"
"""Everyday English in eight paragraphs, a text of loraft's own, so that no model has it by heart."""
CLASS_SHARES = "class shares"
"""What a classifier is compared with where its base has no head: it knows how frequent each class is, and no text."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class ReportRows:
    """The rows that are read, as tokens.

    Attributes:
        held_out: Those that were not learned, or some of them.
        answered: Those of them whose answers are shown.
        learned: Training rows, or some of them.
        learned_rows: How many training rows there are.
        general: The general text, a paragraph an example; none where the model does not continue texts.
    """

    rows: EvaluatedRows
    held_out: Sequence[EvalExample]
    answered: Sequence[EvalExample]
    learned: Sequence[Example]
    learned_rows: int
    general: Sequence[Example]


@dataclass(frozen=True)
class ModelReadings:
    """What one model made of them; `learned` is empty where that was not asked of it."""

    name: str
    held_out: Sequence[RowScore]
    answers: Sequence[str]
    learned: Sequence[RowScore]
    general: Sequence[RowScore]


def read_rows_of(
    model: EvalModel, read: ReportRows, batch_size: int, observer: Observer, *, learned: bool
) -> ModelReadings:
    """Let a model read the rows and answer some of them; what training rows are to it only where `learned`.

    Raises:
        OutOfMemoryError: The device's memory did not suffice.
        NonFiniteError: A loss is not finite.
    """
    message = f"the device ran out of memory with {batch_size} rows at a time"
    with memory_errors(message, remedy="Give a smaller `batch_size`."):
        held_out = model.scores([item.example for item in read.held_out], batch_size, observer)
        examples = read.learned if learned else ()
        return ModelReadings(
            name=model.name,
            held_out=held_out,
            answers=_answers(model, read, held_out, observer),
            learned=model.scores(examples, batch_size, observer),
            general=model.scores(read.general, batch_size, observer),
        )


def _answers(model: EvalModel, read: ReportRows, scores: Sequence[RowScore], observer: Observer) -> Sequence[str]:
    """Its answers to the rows whose answers are shown: a text that it writes, or the class that it told."""
    if model.answers is None:
        told = {id(item): score.answer for item, score in zip(read.held_out, scores, strict=True)}
        return [answer.text for item in read.answered if (answer := told[id(item)]) is not None]
    if not read.answered:
        return []
    observer(Progress(f"answers of {model.name}", 0, len(read.answered)))
    answers = model.answers([read.rows.prompt_ids(item) for item in read.answered], 0)
    observer(Progress(f"answers of {model.name}", len(read.answered), len(read.answered)))
    return [answer.text for answer in answers]


def spread(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """At most so many of the rows, evenly over all of them, in their order."""
    if len(rows) <= most:
        return rows
    return [rows[number * len(rows) // most] for number in range(most)]


def general_examples(renderer: RowRenderer) -> Sequence[Example]:
    """The general text as tokens, a paragraph an example; none for what reads a text to write or to tell another."""
    if renderer.reads_source:
        return []
    paragraphs = GENERAL_TEXT.read_text(encoding="utf-8").split("\n\n")
    tokens = [renderer.tokenizer(each.strip()).input_ids for each in paragraphs]
    return [Example.of_text(ids, ids, f"general text:{number}") for number, ids in enumerate(tokens, start=1)]


def class_shares(labels: Sequence[str], counted: Sequence[Example]) -> EvalModel:
    """What tells each text the most frequent class of `counted`, each class being as likely as it is frequent there.

    The likelihoods are (rows of the class + 1) / (rows + classes), by which none is 0: Laplace's rule of succession.
    """
    often = Counter(example.labels[0] for example in counted)
    shares = [(often[place] + 1) / (len(counted) + len(labels)) for place in range(len(labels))]
    told = Answer(labels[max(range(len(labels)), key=shares.__getitem__)])

    def read(examples: Sequence[Example]) -> list[RowScore]:
        return [RowScore(-math.log(shares[example.labels[0]]), told) for example in examples]

    return EvalModel(CLASS_SHARES, read)
