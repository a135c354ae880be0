"""Many prompts answered: a file of them into a file of answers, row `n` with `seed + n`, or a few by every voice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType

from loraft.adapters.adapter_files import digests
from loraft.config.sections import DataSource
from loraft.dataset.source_rows import refuse_rows
from loraft.errors import AdapterError, DataError, Problem
from loraft.events import Note, Observer, Progress, ignored, tell
from loraft.figures import listed
from loraft.inference.completion import Completion, EndedBy, count_cut
from loraft.inference.engine import complete_batch
from loraft.inference.prompt_limits import beyond_training, prompt_limit
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session, Speaker, seed_of_row
from loraft.io.checksums import sha256_of_facts
from loraft.io.jsonl import AskedRows, lost_fields, write_answers
from loraft.io.resources import memory_errors
from loraft.rows.fields import column_of
from loraft.rows.formats import ASKED, ASKED_OTHERWISE, LanguagePair, Message, Tools, to_question
from loraft.rows.raw_rows import RowsRead, rows_to_answer, text_by_of
from loraft.rows.row import Row

ADDED = ("completion", "finish_reason")
"""What an answer adds to its row."""
BESIDE = ("tools", "system", "input")
"""What a row is asked with, beside its prompt or its turns."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class BatchPrompt:
    """A row, and the conversation that an answer follows, with a system prompt only where the row has one."""

    row: Row
    messages: tuple[Message, ...]
    tools: Tools = ()

    def to(self, voice: Speaker, system: str | None) -> list[Message]:
        """The messages as `voice` is asked them: its own system prompt, or `system`, where the row has none."""
        if self.messages[0].role == "system":
            return voice.with_system(self.messages[1:], self.messages[0].content)
        return voice.with_system(self.messages, system)


@dataclass(frozen=True)
class AnsweredFile:
    """What was done: of the file's rows, those `held` before; of this run the answers that were cut, and tokens.

    Those of the `cut` that no larger limit would make longer are `cut_by_positions`: the model's end there.
    """

    output: Path
    rows: int
    held: int
    cut: int
    cut_by_positions: int
    tokens: int
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it."""
        rate = self.tokens / self.seconds if self.tokens and self.seconds else None
        return {**asdict(self), "tokens_per_second": rate}


def read_questions(
    path: Path,
    source_lang: Callable[[], str | None] | None = None,
    *,
    column: str | None = None,
    learned: Mapping[str, str] | None = MappingProxyType({}),
    observer: Observer = ignored,
) -> list[BatchPrompt]:
    """Every row of a file of prompts, whose column may be called otherwise; of a plain text each row is a prompt.

    `source_lang` tells which text of a `translation` row is asked; it is called where there are such rows. Columns are
    called as in training (`learned`) where the file has such, and what asks so where it has none that is called as ours
    are; where nobody knows how that was, columns that nothing is read from are told. Rows that are not as they must be
    are refused, and the first ones named.
    """
    read = rows_to_answer(path, "prompts")
    tell(observer, *read.notes)
    if column is None and read.columns == ("text",) and text_by_of(DataSource(path=str(path))) is not None:
        column = "text"
    known = {column, *ASKED, *ASKED_OTHERWISE, *BESIDE}
    if "instruction" not in read.columns:  # beside which alone it is read
        known -= {"input"}
    if learned is None and (unread := [name for name in read.columns if name not in known]):
        what = "no run is near that says what the rows of training called their columns"
        observer(Note(f"{what}: nothing is read from {listed(unread)}"))
    learned = learned or {}
    asking = () if column or any(name in read.columns for name in ASKED) else (*ASKED, *ASKED_OTHERWISE)
    there = {ours: theirs for ours, theirs in learned.items() if column_of(theirs, read.columns) in read.columns}
    columns = {ours: theirs for ours, theirs in there.items() if ours in (*asking, *BESIDE)}
    if column:
        columns["instruction" if column == there.get("instruction", "instruction") else "prompt"] = column
    _require_column(path, read, column, columns)
    problems, questions = list(read.problems), []
    translated = any("translation" in row.values for row in read.rows)
    languages = LanguagePair(source_lang()) if source_lang and translated else LanguagePair()
    for row in read.rows:
        try:
            question = to_question(row, languages, columns)
            questions.append(BatchPrompt(row, question.messages, question.tools))
        except DataError as error:
            problems += error.problems
        problems += lost_fields(row.where, row.values, ADDED)
    refuse_rows(list(dict.fromkeys(problems)))
    return questions


def _require_column(path: Path, read: RowsRead, column: str | None, columns: Mapping[str, str]) -> None:
    """A column that no row has is one mistake, not one a row."""
    asking = (column,) if column else (*ASKED, *ASKED_OTHERWISE)
    if not read.rows or any(column_of(columns.get(name, name), read.columns) in read.columns for name in asking):
        return
    missing = f"{column!r}" if column else f"{', '.join(asking[:-1])} or {asking[-1]}"
    message = f"there is no column {missing}; the columns are {', '.join(read.columns)}"
    wanted = (column.lower(),) if column else ASKED
    near = next((name for name in read.columns if name.lower() in wanted), "NAME")
    remedy = f"Name the one that holds the prompts: `prompt_column={near!r}`."
    raise DataError(message, where=path, parameter="prompts", remedy=remedy)


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
    """Answer every question in the voice that speaks first, and write the answers to `output`, or go on with it.

    Whatever ends it early, the rows so far are on disk.
    """
    voice = _voice(session, questions, observer)
    prompts = _prompts(session, voice, questions, options.system)
    most = voice.settings(options)["max_new_tokens"]
    tell(observer, *voice.about_prompts(question.to(voice, options.system) for question in questions))
    tell(observer, *beyond_training(session.model, prompts, most))
    asked = AskedRows([question.row.values for question in questions], ADDED, _answered_by(session, voice, options))
    begun, total = perf_counter(), len(questions)
    lengths, endings = list[int](), list[EndedBy]()

    def answers(window: range, first: int) -> list[tuple[str, str]]:
        answered = complete_batch(
            session.model,
            voice.tokenizer,
            prompts[window.start : window.stop],
            **voice.settings(replace(options, seed=seed_of_row(options.seed, window.start))),
            batch_size=batch_size,
            on_batch=lambda count: observer(Progress("rows answered", max(first, window.start + count), total)),
        )
        new = answered[first - window.start :]
        lengths.extend(len(answer.token_ids) for answer in new)
        endings.extend(answer.ended_by for answer in new)
        return [(answer.completion, answer.finish_reason) for answer in new]

    message = f"the device ran out of memory with {batch_size} rows at a time"
    remedy = "Give a smaller `batch_size`; what is answered stays."
    with memory_errors(message, remedy=remedy, where=output, rewords=True):
        held = write_answers(output, asked, answers, batch_size=batch_size, overwrite=overwrite)
    return AnsweredFile(output, total, held, *count_cut(endings), sum(lengths), perf_counter() - begun)


def _voice(session: Session, questions: Sequence[BatchPrompt], observer: Observer) -> Speaker:
    """The voice that speaks first, as it is asked more than single texts where a question is a conversation."""
    voice = session.voice()
    if any(len(question.messages) > 1 or question.tools for question in questions):
        voice = voice.conversing()
        tell(observer, *voice.renderer.notes)
    return voice


def _prompts(session: Session, voice: Speaker, questions: Sequence[BatchPrompt], system: str | None) -> list[list[int]]:
    """The tokens of every question, if the template can render them all and the model has positions for them."""
    positions = prompt_limit(session.model)
    problems, prompts = [], []
    for question in questions:
        try:
            ids = voice.renderer.prompt_ids(question.to(voice, system), question.tools)
        except DataError as error:
            problems += [replace(problem, where=question.row.where) for problem in error.problems]
            continue
        prompts.append(ids)
        if not ids:
            problems.append(Problem("has no tokens", question.row.where))
        if positions is not None and len(ids) > positions:
            message = f"has {len(ids):,} tokens, and this model has learned {positions:,} positions"
            problems.append(Problem(message, question.row.where))
    refuse_rows(problems)
    return prompts


def _answered_by(session: Session, voice: Speaker, options: GenerationRequest) -> str:
    """What tells answers of this model with these settings from others: a hash over all that decides them.

    The number of rows at a time is not among them, nor how steps are launched: these decide speed and memory.
    """
    settings = voice.settings(options)
    decides = {name: value for name, value in settings.items() if name != "cuda_graphs"}
    described = {
        "adapter": digests(voice.folder) if voice.name != BASE else None,
        "base": session.loaded.fingerprint,
        "merged": session.merged,
        "dtype": str(session.loaded.placement.dtype),
        "options": asdict(options),
        "quantization": session.quantization.model_dump() if session.quantization else None,
        "settings": {**decides, "rules": asdict(settings["rules"])},
        **voice.renderer.recorded,
        "template": voice.renderer.chat_template,
    }
    return sha256_of_facts(described)[:16]


@dataclass(frozen=True)
class AdapterComparison:
    """A prompt and what each voice answers to it, by the voice's name: the base first, then the adapters."""

    prompt: str
    completions: dict[str, Completion]


def compare(
    session: Session, prompts: Sequence[str], *, options: GenerationRequest, batch_size: int, observer: Observer
) -> list[AdapterComparison]:
    """Let every voice answer every prompt, each as it was trained: with its template, system prompt and defaults."""
    if not session.adapters:
        message = "there is no adapter to compare the base with"
        raise AdapterError(message, parameter="compare", remedy="Name an adapter or a run, or give `adapters`.")
    voices = (BASE, *session.adapters)
    answers: dict[str, list[Completion]] = {}
    for name in voices:
        voice = session.voice(name)
        for note in voice.notes if name != session.voice().name else ():  # those of the first were told already
            observer(Note(f"{name}: {note}"))
        asked = [voice.conversation(prompt, options.system) for prompt in prompts]
        ids = [voice.renderer.prompt_ids(messages) for messages in asked]
        settings = voice.settings(options)
        for note in (*voice.about_prompts(asked), *beyond_training(session.model, ids, settings["max_new_tokens"])):
            observer(Note(f"{name}: {note}"))
        with session.speaking(voice) as model:
            answers[name] = complete_batch(model, voice.tokenizer, ids, **settings, batch_size=batch_size)
        observer(Progress("answers", len(answers) * len(prompts), len(voices) * len(prompts)))
    of_prompts = zip(prompts, zip(*answers.values(), strict=True), strict=True)
    return [AdapterComparison(prompt, dict(zip(voices, said, strict=True))) for prompt, said in of_prompts]
