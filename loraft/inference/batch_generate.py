"""A file of prompts answered into a file of answers, many at a time.

Rows are taken in windows: inside one they are sorted by length, so that little is padded, and its answers are on disk
before the next begins. A run that was stopped goes on with the window that was cut short: that one is answered whole
again, so that every row has the neighbours, and the answer, that it would have had. Row `n` draws from `seed + n`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

from loraft.adapters.adapter_files import digests
from loraft.dataset.source_rows import shortened
from loraft.errors import DataError, OutOfMemoryError, Problem
from loraft.events import Note, Observer, Progress
from loraft.inference.decoder_state import prompt_limit
from loraft.inference.engine import complete_batch
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session, Speaker
from loraft.io.checksums import sha256_of_facts
from loraft.io.jsonl import AskedRows, lost_fields, open_answers
from loraft.rows.formats import ASKED, ASKED_FOR_A_TEXT, LanguagePair, Message, to_question
from loraft.rows.raw_rows import RowsRead, rows_to_answer
from loraft.rows.readers import Row

ADDED = ("completion", "finish_reason")
"""What an answer adds to its row."""
BATCH_SIZE = 8
BATCHES_A_WINDOW = 8
ROWS = "rows answered"


@dataclass(frozen=True)
class BatchPrompt:
    """A row and what it asks.

    Attributes:
        row: The row, with its place.
        messages: The conversation that an answer follows; a system prompt only where the row has one.
    """

    row: Row
    messages: tuple[Message, ...]

    def to(self, voice: Speaker, system: str | None) -> list[Message]:
        """The messages as `voice` is asked them: its own system prompt, or `system`, where the row has none."""
        if self.messages[0].role == "system":
            return voice.with_system(self.messages[1:], self.messages[0].content)
        return voice.with_system(self.messages, system)


@dataclass(frozen=True)
class AnsweredFile:
    """What was done.

    Attributes:
        output: The file of answers.
        rows: The rows that it holds: all of them.
        held: Those that it held before this run.
        cut: Of the answers of this run, those that the limit ended.
        tokens: The tokens of the answers of this run.
        seconds: What this run took, loading aside.
    """

    output: Path
    rows: int
    held: int
    cut: int
    tokens: int
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        rate = self.tokens / self.seconds if self.tokens and self.seconds else None
        return {**asdict(self), "tokens_per_second": rate}


def read_questions(
    path: Path, source_lang: Callable[[], str | None] | None = None, *, column: str | None = None
) -> list[BatchPrompt]:
    """Every row of a file of prompts.

    Args:
        path: The file.
        source_lang: Tells which text of a `translation` row is asked; called where there are such rows.
        column: What the column of prompts is called, where it is called otherwise.

    Raises:
        DataError: There is no such file, or rows are not as they must be; the first ones are named.
    """
    read = rows_to_answer(path, "prompts")
    _require_column(path, read, column)
    problems, questions = list(read.problems), []
    languages = LanguagePair(source_lang()) if source_lang and any(map(_is_translation, read.rows)) else LanguagePair()
    for row in read.rows:
        try:
            questions.append(BatchPrompt(row, to_question(row, languages, column)))
        except DataError as error:
            problems += error.problems
        problems += lost_fields(row.where, row.values, ADDED)
    if problems:
        raise DataError.several(shortened(list(dict.fromkeys(problems)), remedy=None))
    return questions


def _require_column(path: Path, read: RowsRead, column: str | None) -> None:
    """A column that no row has is one mistake, not one a row."""
    if not read.rows or any(name in read.columns for name in ((column,) if column else (*ASKED, *ASKED_FOR_A_TEXT))):
        return
    missing = f"{column!r}" if column else f"{', '.join((*ASKED, *ASKED_FOR_A_TEXT)[:-1])} or {ASKED_FOR_A_TEXT[-1]}"
    message = f"there is no column {missing}; the columns are {', '.join(read.columns)}"
    wanted = (column.lower(),) if column else ASKED
    near = next((name for name in read.columns if name.lower() in wanted), "NAME")
    remedy = f"Name the one that holds the prompts: `prompt_column={near!r}`."
    raise DataError(message, where=str(path), parameter="prompts", remedy=remedy)


def _is_translation(row: Row) -> bool:
    return "translation" in row.values


def answer_questions(
    session: Session,
    questions: Sequence[BatchPrompt],
    output: Path,
    *,
    options: GenerationRequest,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    observer: Observer,
) -> AnsweredFile:
    """Answer every question in the voice that speaks first, and write the answers to `output`.

    Args:
        session: The open model.
        questions: The rows, in the order in which they are written.
        output: The file of answers; one that was begun is gone on with.
        options: How they are answered.
        batch_size: How many at a time.
        overwrite: Begin anew, whatever `output` holds.
        observer: Is told how far it is.

    Raises:
        DataError: A question cannot be rendered or is too long, or `output` holds something else.
        OutOfMemoryError: The device is too small for so many at a time.
        DiskFullError: The disk filled up.
        Interrupted: By SIGINT or SIGTERM; the rows so far are on disk.
    """
    voice = _voice(session, questions, observer)
    prompts = _prompts(session, voice, questions, options.system)
    for note in voice.about_prompts(question.to(voice, options.system) for question in questions):
        observer(Note(note))
    asked = AskedRows([question.row.values for question in questions], ADDED, _answered_by(session, voice, options))
    begun, answers = perf_counter(), []
    with open_answers(output, asked, overwrite=overwrite) as file:
        held, total = file.rows, len(questions)
        with _memory_told(output, batch_size):
            for window in file.windows(total, batch_size * BATCHES_A_WINDOW):
                answered = complete_batch(
                    session.model,
                    voice.tokenizer,
                    prompts[window.start : window.stop],
                    **voice.settings(_from_row(options, window.start)),
                    batch_size=batch_size,
                    on_batch=_progress(observer, window.start, held, total),
                )
                new = answered[file.rows - window.start :]
                file.append(asked.answered(file.rows, ((each.completion, each.finish_reason) for each in new)))
                answers += [(len(answer.token_ids), answer.finish_reason) for answer in new]
    cut = sum(reason == "length" for _, reason in answers)
    return AnsweredFile(output, total, held, cut, sum(length for length, _ in answers), perf_counter() - begun)


def _voice(session: Session, questions: Sequence[BatchPrompt], observer: Observer) -> Speaker:
    """The voice that speaks first, as it is asked more than single texts where a question is a conversation."""
    voice = session.voice()
    if any(len(question.messages) > 1 for question in questions):
        voice = voice.conversing()
        for note in voice.renderer.notes:
            observer(Note(note))
    return voice


def _from_row(options: GenerationRequest, row: int) -> GenerationRequest:
    """The options for the rows from `row` on, whose first draws from a seed of its own."""
    return options if options.seed is None else replace(options, seed=(options.seed + row) % 2**32)


def _progress(observer: Observer, start: int, held: int, total: int) -> Callable[[int], None]:
    """Tells of the rows of a window that are answered, after those before it."""
    return lambda count: observer(Progress(ROWS, max(held, start + count), total))


@contextmanager
def _memory_told(output: Path, batch_size: int) -> Iterator[None]:
    """Memory that runs out, whoever says so, with what helps here."""
    try:
        yield
    except (torch.OutOfMemoryError, OutOfMemoryError) as error:
        message = f"the device ran out of memory with {batch_size} rows at a time"
        remedy = "Give a smaller `batch_size`; what is answered stays."
        raise OutOfMemoryError(message, where=str(output), remedy=remedy) from error


def _prompts(session: Session, voice: Speaker, questions: Sequence[BatchPrompt], system: str | None) -> list[list[int]]:
    """The tokens of every question.

    Raises:
        DataError: The template cannot render a question, or the model has no position for its tokens.
    """
    positions = prompt_limit(session.model)
    problems, prompts = [], []
    for question in questions:
        try:
            ids = voice.prompt_ids(question.to(voice, system))
        except DataError as error:
            problems += [replace(problem, where=question.row.where) for problem in error.problems]
            continue
        prompts.append(ids)
        if not ids:
            problems.append(Problem("has no tokens", question.row.where))
        if positions is not None and len(ids) > positions:
            message = f"has {len(ids):,} tokens, and this model has learned {positions:,} positions"
            problems.append(Problem(message, question.row.where))
    if problems:
        raise DataError.several(shortened(problems, remedy=None))
    return prompts


def _answered_by(session: Session, voice: Speaker, options: GenerationRequest) -> str:
    """What tells answers of this model with these settings from others: a hash over all that decides them.

    The number of rows at a time is not among them: it decides speed and memory.
    """
    adapted = voice.name != BASE
    described = {
        "adapter": digests(voice.folder) if adapted else None,
        "base": session.loaded.fingerprint,
        "merged": session.merged,
        "dtype": str(session.loaded.placement.dtype),
        "options": asdict(options),
        "quantization": session.quantization.model_dump() if session.quantization else None,
        "settings": {**voice.settings(options), "rules": asdict(voice.settings(options)["rules"])},
        **voice.renderer.recorded,
        "template": voice.renderer.chat_template,
    }
    return sha256_of_facts(described)[:16]
