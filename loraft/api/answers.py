"""Answers of a base model, or of what was trained: one, several, a file of them, a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loraft.adapters.resolve_target import task_of
from loraft.api.classes import OpenClassifier
from loraft.errors import ConfigError
from loraft.evaluation.open_model import RequestedModel, to_be_told
from loraft.events import Observer, ignored, tell
from loraft.inference.batch_generate import (
    ADDED,
    BATCH_SIZE,
    AdapterComparison,
    AnsweredFile,
    answer_questions,
    read_questions,
)
from loraft.inference.batch_generate import compare as compare_voices
from loraft.inference.completion import CacheComparison, Completion, Finish, Stream, Token, compare_cache
from loraft.inference.conversation import ChatSession
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import Settings, complete_batch, stream
from loraft.inference.prompt_limits import beyond_training
from loraft.inference.requests import AnyModel, GenerationRequest, several
from loraft.inference.session import Session
from loraft.inference.tracer import Trace, Tracer
from loraft.io.jsonl import AskedRows, check_jsonl
from loraft.models.remote_code import as_trusted
from loraft.rows.places import files_here
from loraft.tasks import TASKS
from loraft.tokenization.boundaries import Pieces

AS_SAVED = GenerationRequest()


@dataclass(frozen=True, eq=False)
class Answering(Iterator[Token]):
    """An answer that is on its way: iterate over its tokens, then read `completion`.

    Attributes:
        stream: The tokens as they come.
        notes: What was decided and found, a sentence each.
        tracer: Is told how each token comes about; None where nobody asked.
        with_cache: Makes the same answer with a cache, to compare one without with; None where nobody asked.
    """

    stream: Stream
    notes: tuple[str, ...]
    tracer: Tracer | None = None
    with_cache: Callable[[], CacheComparison] | None = None

    def __next__(self) -> Token:
        return next(self.stream)

    @property
    def completion(self) -> Completion:
        """The whole answer."""
        return self.stream.completion

    @property
    def ending(self) -> Finish | None:
        """Why the answer ended; None until it has."""
        return self.stream.ending

    @property
    def trace(self) -> Trace | None:
        """How the answer came about, where that was asked for."""
        _ = self.completion  # the answer runs to its end
        return self.tracer.trace if self.tracer is not None else None


class OpenModel:
    """A model that is loaded once and asked many times.

    Attributes:
        notes: What was decided and found, a sentence each.
    """

    def __init__(self, session: Session) -> None:
        """Ask an open session."""
        self._session = session
        self.notes = session.notes

    def generate(
        self,
        prompt: str,
        *,
        options: GenerationRequest = AS_SAVED,
        trace: bool = False,
        layers: bool = False,
        use_cache: bool = True,
    ) -> Answering:
        """Answer a prompt; the arguments are those of `loraft.generate`."""
        session, voice = self._session, self._session.voice()
        notes = [*session.notes, *to_be_told(session, options)]
        settings = voice.settings(options)
        if (trace or not use_cache) and settings["rules"].num_beams > 1:
            notes.append(_drop_saved_beams(settings, options, "traced" if trace else "compared token by token"))
        if settings["seed"] is None:
            settings["seed"] = torch.Generator().seed() % 2**32  # drawn once, for an answer that may be given twice
        asked = voice.conversation(prompt, options.system)
        ids = voice.renderer.prompt_ids(asked)
        notes += [*voice.about_prompts([asked]), *beyond_training(session.model, [ids], settings["max_new_tokens"])]
        tracer = Tracer(session.model, voice.tokenizer, layers=layers) if trace else None
        # What is traced is launched layer by layer: each is listened to.
        context = DecoderState(session.model, use_cache=use_cache) if trace or not use_cache else None
        answered = stream(session.model, voice.tokenizer, ids, **settings, context=context, tracer=tracer)

        def with_cache() -> CacheComparison:
            again = stream(session.model, voice.tokenizer, ids, **settings)
            return compare_cache(again.completion, answered.completion, Pieces(voice.tokenizer).of)

        return Answering(answered, tuple(notes), tracer, None if use_cache else with_cache)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        options: GenerationRequest = AS_SAVED,
        batch_size: int = BATCH_SIZE,
        observer: Observer = ignored,
    ) -> list[Completion]:
        """Answer several prompts, or one, `batch_size` at a time; one completion a prompt, in their order."""
        voice = self._session.voice()
        tell(observer, *self.notes, *to_be_told(self._session, options))
        asked = [voice.conversation(prompt, options.system) for prompt in several(prompts)]
        ids = [voice.renderer.prompt_ids(messages) for messages in asked]
        settings, model = voice.settings(options), self._session.model
        tell(observer, *voice.about_prompts(asked), *beyond_training(model, ids, settings["max_new_tokens"]))
        return complete_batch(model, voice.tokenizer, ids, **settings, batch_size=batch_size)

    def chat(self, *, options: GenerationRequest = AS_SAVED) -> ChatSession:
        """Begin a conversation.

        Raises:
            ModelError: The model holds no conversation.
        """
        return ChatSession(self._session, options)


@as_trusted
def load(model: AnyModel, *, observer: Observer = ignored) -> OpenModel | OpenClassifier:
    """Load a model once, to ask it many times.

    Args:
        model: What answers; a name alone is its target: a base, an adapter, a run, a checkpoint or a config.
        observer: Is told what was decided and found.

    Returns:
        What answers prompts, or what tells the classes of texts.

    Raises:
        InvalidInputError: The target cannot be used.
    """
    requested = RequestedModel(model)
    if not TASKS[task_of(requested.found)].generates:
        return OpenClassifier(requested.classifier(observer))
    opened = OpenModel(requested.session())
    tell(observer, *opened.notes)
    return opened


@as_trusted
def generate(
    model: AnyModel,
    *,
    prompt: str,
    options: GenerationRequest = AS_SAVED,
    trace: bool = False,
    layers: bool = False,
    use_cache: bool = True,
) -> Answering:
    """Answer a prompt.

    Args:
        model: What answers; a name alone is its target.
        prompt: What is asked.
        options: How it is answered.
        trace: Tell how each token comes about.
        layers: And what each layer would have said.
        use_cache: False reads everything again at each step; the answer can then be compared with one with a cache.

    Raises:
        InvalidInputError: The target or the prompt cannot be used.
    """
    opened = OpenModel(RequestedModel(model).session())
    return opened.generate(prompt, options=options, trace=trace, layers=layers, use_cache=use_cache)


def _drop_saved_beams(settings: Settings, options: GenerationRequest, what: str) -> str:
    """Set `settings` to one beam, whatever was saved with the model, and give the note about it.

    Raises:
        ConfigError: The caller asks for beams.
    """
    beams = settings["rules"].num_beams
    if options.num_beams is not None:
        raise ConfigError(f"beams cannot be {what}", parameter="num_beams", remedy="Ask for an answer without beams.")
    settings["rules"] = replace(settings["rules"], num_beams=1)
    return f"the {beams} beams that generation_config.json asks for cannot be {what}: it is one here"


@as_trusted
def complete(
    model: AnyModel,
    *,
    prompts: Sequence[str],
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    observer: Observer = ignored,
) -> list[Completion]:
    """Answer several prompts, `batch_size` at a time; the other arguments are those of `generate`.

    Returns:
        One completion a prompt, in the order of the prompts.
    """
    opened = OpenModel(RequestedModel(model).session())
    return opened.complete(prompts, options=options, batch_size=batch_size, observer=observer)


@as_trusted
def compare(
    model: AnyModel,
    *,
    prompts: Sequence[str],
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    observer: Observer = ignored,
) -> list[AdapterComparison]:
    """Let the base and each adapter answer the same prompts; the other arguments are those of `generate`.

    Returns:
        One comparison a prompt, in the order of the prompts.
    """
    session = RequestedModel(model).session()
    tell(observer, *session.notes)
    return compare_voices(session, several(prompts), options=options, batch_size=batch_size, observer=observer)


@as_trusted
def answer_file(
    model: AnyModel,
    *,
    prompts: str | Path,
    output: str | Path,
    prompt_column: str | None = None,
    options: GenerationRequest = AS_SAVED,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    observer: Observer = ignored,
) -> AnsweredFile:
    """Answer a file of prompts into a file of answers.

    Args:
        model: What answers; a name alone is its target.
        prompts: The file of rows with `prompt`, `messages`, `instruction`, `source` or `translation`.
        prompt_column: What `prompt` is called in it, where it calls it otherwise.
        output: Where each row is written with its `completion`; one that was begun is gone on with.
        options: How they are answered.
        batch_size: How many rows at a time.
        overwrite: Begin anew, whatever `output` holds.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is answered, with the first bad rows.
        RunError: While answering; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    requested, prompts, output = RequestedModel(model), Path(prompts), Path(output)
    learned = requested.learned_columns
    questions = read_questions(
        prompts, lambda: requested.source_language, column=prompt_column, learned=learned, observer=observer
    )
    asked = AskedRows([question.row.values for question in questions], ADDED)
    check_jsonl(output, reads=files_here(str(prompts)), asked=asked, overwrite=overwrite)
    session = requested.session()
    tell(observer, *session.notes, *to_be_told(session, options))
    return answer_questions(
        session, questions, output, options=options, batch_size=batch_size, overwrite=overwrite, observer=observer
    )


@as_trusted
def open_chat(model: AnyModel, *, options: GenerationRequest = AS_SAVED) -> ChatSession:
    """Begin a conversation; the arguments are those of `generate`.

    Raises:
        InvalidInputError: The target cannot be used, or the model holds no conversation.
    """
    return OpenModel(RequestedModel(model).session()).chat(options=options)
