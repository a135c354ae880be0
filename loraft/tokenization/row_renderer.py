"""What turns the records of a task into examples: all renderers have this one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from transformers import PreTrainedTokenizerBase

from loraft.config.choices import SpecialTokensInText
from loraft.config.sections import DataSection
from loraft.errors import ModelError
from loraft.rows.formats import Message, Record
from loraft.tokenization.content_marks import ControlTokens
from loraft.tokenization.examples import Example


class RowRenderer(Protocol):
    """The one way from records to tokens, for one task and tokenizer."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided, a sentence each."""

    @property
    def chat_template(self) -> str | None:
        """The chat template that is used; None where conversations are not rendered."""

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that every training conversation had; None where there was none."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer; none where none is given."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in their order; none where answers are text."""

    @property
    def reads_source(self) -> bool:
        """The model reads a prompt with an encoder, as plain text, to its end."""

    def as_plain(self) -> RowRenderer:
        """The same, for prompts that are plain text."""

    def conversing(self) -> RowRenderer:
        """The same, able to print conversations: as chatml where the tokenizer has no chat template.

        Raises:
            ModelError: The tokenizer can end no turn, or the model reads texts and no conversations.
        """

    @property
    def control_tokens(self) -> ControlTokens:
        """The tokenizer's control tokens, and what is done with them in the text of rows and prompts."""

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that rows and prompts are rendered the same way later."""

    def parts(self, record: Record) -> Sequence[Record]:
        """The rows that a record becomes: itself, unless the config splits it."""

    def render(self, record: Record) -> Any:
        """The text of a record.

        Raises:
            DataError: It cannot be rendered.
        """

    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of a row that became tokens, each with what can be done."""

    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> Sequence[Example]:
        """Rendered records as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """

    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The record; of one with a long text that exceeds the limits a beginning that exceeds them too.

        The beginning has the first tokens of the whole, so that what is cut to the limits is the same.

        Raises:
            ManyTokensError: A text cannot be cut, and is certain to exceed the limits.
            DataError: A text is too long to be read whole, and cannot be cut.
        """

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds the limits, its length after `least`; None where it does not."""

    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> Sequence[Example]:
        """What is kept of an example that is too long."""

    def marked(self, example: Example) -> str:
        """The row's text with what is trained in ⟦ ⟧."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that an answer to `messages` follows, or that an encoder reads to give it."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a renderer takes from the training rows; a few words that stand for all of them.

    Attributes:
        system_prompt: The one that every conversation begins with; None when they differ or have none.
        conversations: There are conversations to render.
        labels: The classes, in their order.
        pairs: Some rows have two texts to classify together.
    """

    system_prompt: str | None = None
    conversations: bool = True
    labels: tuple[str, ...] = ()
    pairs: bool = False


class PlainTextRenderer:
    """What renderers of plain texts have in common: no conversation is around a text, and each record is one row."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens_in_text: SpecialTokensInText
    chat_template: ClassVar[str | None] = None
    system_prompt: ClassVar[str | None] = None
    reads_source: ClassVar[bool] = True

    def as_plain(self) -> Self:
        """This one: texts are read as they are."""
        return self

    def conversing(self) -> Self:
        """Never: the model reads texts, each alone.

        Raises:
            ModelError: Always.
        """
        message = "the model reads one text and writes another: it holds no conversation"
        raise ModelError(message, remedy="Give it each text alone, as a prompt.")

    def parts(self, record: Record) -> Sequence[Record]:
        """The record itself."""
        return [record]

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """The tokenizer's control tokens, and what is done with them in the text of rows and prompts."""
        return ControlTokens(self.tokenizer, self.special_tokens_in_text)
