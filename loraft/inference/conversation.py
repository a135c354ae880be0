"""A conversation with an open model, and what of it the model has read already.

Each turn the whole conversation is printed anew as the template prints it, and compared with what the cache of keys and
values holds: only the tokens after the longest common beginning are read, but the answer is that of a fresh reading,
whatever a template does to earlier turns. Each voice has a cache of its own, made with the adapter that acts.

An answer that is stopped stays as far as it was given; one of which nothing was given is taken back with its question.
So is one that fails, with all that was read: nothing half-read is ever built upon.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path

from loraft.errors import DataError, DiskFullError
from loraft.figures import shared_beginning
from loraft.inference.completion import Completion, Stream, Token, TokenStream
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import stream
from loraft.inference.prompt_limits import learned_positions, prompt_limit, trained_positions
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import BASE, Session, Speaker
from loraft.io.atomic import write_whole
from loraft.io.resources import memory_errors
from loraft.rows.formats import Message


class ChatStream(TokenStream):
    """An answer on its way: iterate over its tokens, or `stop` it; either way it is then part of the conversation.

    Of its `prompt_tokens`, those of the conversation before it, the cache `held` some already; the rest was read.
    """

    def __init__(self, tokens: Generator[Token, None, Completion], prompt_tokens: int, held: int) -> None:
        super().__init__(tokens)
        self.prompt_tokens = prompt_tokens
        self.held = held

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None where it was stopped."""
        return self._completion


class ChatSession:
    """What was said, in whose voice it goes on, and what that voice has read."""

    def __init__(self, session: Session, options: GenerationRequest) -> None:
        self.session = session
        self.voice: Speaker = session.voice().conversing()
        self.options = options
        self.voice.settings(options)
        self._messages: list[Message] = []
        self._contexts: dict[str, DecoderState] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided and found, a sentence each."""
        return tuple(dict.fromkeys((*self.session.notes, *self.voice.notes)))

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, the system prompt before it."""
        return tuple(self.voice.with_system(self._messages, self.options.system))

    @property
    def system(self) -> str | None:
        """The system prompt in force: the one that is set, or the one that was trained with."""
        found = self.messages[:1]
        return found[0].content if found and found[0].role == "system" else None

    @property
    def positions(self) -> int | None:
        """How many positions the model has learned, and can read at most; None where nothing bounds it."""
        return learned_positions(self.session.model)

    @property
    def trained_length(self) -> int | None:
        """The length up to which the model was trained, as its config says, where an answer may go beyond it."""
        return trained_positions(self.session.model)

    def ask(self, text: str) -> ChatStream:
        """Say something, and get the answer as it comes.

        Raises:
            DataError: The template cannot print the conversation, or it is longer than the model's positions.
            NonFiniteError: While iterating, if the model's logits are not numbers.
            OutOfMemoryError: While iterating, if the device is too small.
        """
        asked = [*self._messages, Message("user", text)]
        ids = self.voice.renderer.prompt_ids(self.voice.with_system(asked, self.options.system))
        most = prompt_limit(self.session.model)
        if most is not None and len(ids) > most:
            message = f"the conversation has {len(ids):,} tokens, and this model has learned {most:,} positions"
            raise DataError(message, remedy="Begin anew, or take turns back.")
        settings = self.voice.settings(self.options)
        context, held = None, 0
        if settings["rules"].num_beams == 1:  # of several answers that are followed at once nothing can be kept
            context = self._contexts.pop(self.voice.name, None) or DecoderState(self.session.model, rewinds=True)
            # The last token is read in any case: its logits are what comes next.
            held = shared_beginning(context.first_row, ids[:-1])
            if held < context.length and not context.family.rewinds:
                context, held = DecoderState(self.session.model), 0  # a recurrent state has no earlier point
            context.rewind(held)
        answered = stream(self.session.model, self.voice.tokenizer, ids, **settings, context=context)
        return ChatStream(self._tokens(self.voice, asked, context, answered), len(ids), held)

    def _tokens(
        self, voice: Speaker, asked: list[Message], context: DecoderState | None, answered: Stream
    ) -> Generator[Token, None, Completion]:
        """The tokens of an answer, which becomes part of the conversation however far it came."""
        text, ids, read = "", list[int](), {} if context is None else {voice.name: context}
        taken_back = "the device ran out of memory: the answer and its question are taken back"
        try:
            with memory_errors(taken_back, remedy=None, rewords=True), self.session.speaking(voice):
                for token in answered:
                    text += token.text
                    ids.append(token.id)
                    yield token
        except GeneratorExit:
            answered.stop()
            self._contexts |= read
            if text:
                self._messages = [*asked, Message("assistant", voice.renderer.remembered(text, ids))]
            raise
        self._contexts |= read
        whole = answered.completion
        said = voice.renderer.remembered(whole.completion, whole.token_ids)
        self._messages = [*asked, Message("assistant", said)]
        return whole

    def reset(self) -> None:
        """Forget all that was said and read; system prompt, options and voice stay."""
        self._messages = []
        self._contexts = {}

    def undo(self) -> Message | None:
        """Take back the last question and what was answered; the question, or None where nothing was said."""
        if not self._messages:
            return None
        last = max(index for index, message in enumerate(self._messages) if message.role == "user")
        question, self._messages = self._messages[last], self._messages[:last]
        return question

    def speak_as(self, name: str | None) -> None:
        """Go on in the voice of an adapter, or of the base for None; what was said stays."""
        voice = self.session.voice(BASE if name is None else name).conversing()
        voice.settings(self.options)
        self.voice = voice

    def set_options(self, options: GenerationRequest) -> None:
        """Make the next answers in another way; where a value is refused, the options stay as they were."""
        self.voice.settings(options)
        self.options = options


def save_conversation(path: Path, messages: Sequence[Message]) -> int:
    """Write a conversation as one row that loraft trains on, and tell how many answers it has.

    Questions that were answered with nothing are left out: there is nothing in them to learn.
    """
    if path.suffix.lower() != ".jsonl":
        remedy = f"Name it {path.stem or 'chat'}.jsonl."
        raise DataError("is not named as a file of rows", where=path, remedy=remedy)
    kept: list[Message] = []
    for message in messages:
        if message.role == "assistant" and not message.content.strip():
            kept.pop()
        else:
            kept.append(message)
    answers = sum(message.role == "assistant" for message in kept)
    if not answers:
        raise DataError("there is no answer to save yet", where=path)
    row = {"messages": [{"role": message.role, "content": message.content} for message in kept]}
    if os.path.lexists(path):
        raise DataError("is there already, and is left as it is", where=path, remedy="Name another file.")
    try:
        write_whole(path, json.dumps(row, ensure_ascii=False) + "\n")
    except DiskFullError as error:  # the conversation goes on
        raise DataError.several(error.problems) from error
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=path) from error
    return answers
