"""What is asked of the model's thread, and what that thread tells of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loraft.errors import DataError, LoraftError
from loraft.inference.requests import GenerationRequest
from loraft.inference.session import Speaker
from loraft.rows.formats import Message, Tools
from loraft.tokenization.boundaries import BorderedText, TextEncoder


@dataclass(frozen=True)
class ScoredToken:
    """A token: how it is spelled, its bytes where they are known, and its log-probability."""

    spelled: str
    utf8: bytes | None
    logprob: float


@dataclass(frozen=True)
class ChoiceToken:
    """A token of one of the answers, the text that it made readable, and the likeliest in its place."""

    said: ScoredToken
    text: str
    likeliest: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Opened:
    """The prompt was read: so many tokens, of which some were held from earlier prompts."""

    prompt_tokens: int
    held: int


@dataclass(frozen=True)
class Grown:
    """One of the answers grew by these tokens, and ended where there is a reason."""

    choice: int
    tokens: tuple[ChoiceToken, ...]
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True)
class Failed:
    """There will be no answer."""

    error: LoraftError


Event = Opened | Grown | Failed


@dataclass(frozen=True)
class Asked:
    """A conversation, or a plain text that is gone on with, and how it is answered.

    Attributes:
        messages: The conversation; of a plain text the one message that holds it.
        plain: The text is gone on with as it is, without a template; an encoder reads it as it was trained to.
        tools: What the template is told that the assistant may call, as JSON schemas.
        answers: How many answers are wanted, each with a seed of its own.
        likeliest: For how many tokens in each place their log-probability is told; None tells none.
    """

    messages: Sequence[Message]
    options: GenerationRequest
    plain: bool = False
    tools: Tools = ()
    answers: int = 1
    likeliest: int | None = None


@dataclass(eq=False)
class Job:
    """A request on its way: `tell` is called in the model's thread, and `cancelled` is set by whoever asked."""

    voice: Speaker
    asked: Asked
    tell: Callable[[Event], None]
    cancelled: bool = False
    prompt_ids: list[int] = field(default_factory=list)

    def open(self) -> None:
        """Find the tokens of the prompt.

        Raises:
            InvalidInputError: The template cannot print the conversation, or it holds what is refused.
        """
        voice, asked = self.voice, self.asked
        if asked.plain and not voice.renderer.reads_source:
            text = BorderedText(asked.messages[0].content, opens=True, whole=True)
            (read,) = TextEncoder(voice.tokenizer).encode([text])  # without an end that the tokenizer puts behind it
            self.prompt_ids = read.ids
            return
        given = bool(asked.messages) and asked.messages[0].role == "system"
        messages = list(asked.messages) if given else voice.with_system(asked.messages, asked.options.system)
        try:
            self.prompt_ids = voice.renderer.prompt_ids(messages, asked.tools)
        except DataError as error:
            if any(problem.key == "data.chat_template" for problem in error.problems):
                raise DataError(error.problems[0].message, key="tools" if asked.tools else "messages") from error
            raise
