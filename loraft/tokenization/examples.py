"""A row as tokens, and what makes it of a task's records: all renderers have this one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from loraft.config.choices import SpecialTokensInText
from loraft.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraft.config.sections import DataSection
    from loraft.rows.formats import Message, Record, Tools
    from loraft.tokenization.assistant_mask import ChatTemplate
    from loraft.tokenization.content_marks import ControlTokens

IGNORED = -100
"""The label of a token that is not trained."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row, or a piece of one, as tokens. What its labels are is its task's to say.

    Attributes:
        input_ids: The tokens that the model reads, an encoder-decoder with its encoder.
        labels: Of a text the same tokens where they are trained, else -100; of a pair the tokens of the target; of a
            classified text the number of its class, alone.
        trained: How many tokens are trained, or decisions.
        tokens: How many tokens the model reads, those of a target too.
        token_type_ids: 0 for the tokens of the first text and 1 for those of the second, where a classifier tells them
            apart; else None.
        second: Where in the labels those of the worse of two answers begin that are compared; 0 where there is one. The
            tokens are those of both whole texts, or the source twice.
        reference: The log-likelihood of each text's trained tokens before training, in nats, where it is known.
        desirable: Whether an answer that stands alone is one to be given; None where nobody says.
        mismatched: The prompt with the answer of another row, where the loss compares with such.
    """

    input_ids: list[int]
    labels: list[int]
    where: str
    trained: int
    tokens: int
    token_type_ids: list[int] | None = None
    second: int = 0
    reference: tuple[float, ...] | None = None
    desirable: bool | None = None
    mismatched: Example | None = None

    @property
    def target_tokens(self) -> int:
        """How many tokens a target has that the model reads besides: none of a text."""
        return self.tokens - len(self.input_ids)

    @classmethod
    def of_text(cls, ids: list[int], labels: list[int], where: str) -> Example:
        """A text; the first token is never trained, since nothing predicts it."""
        trained = len(labels) - labels.count(IGNORED) - (labels[:1] not in ([], [IGNORED]))
        return cls(ids, labels, where, trained, len(ids))

    @classmethod
    def of_pair(cls, source: list[int], target: list[int], where: str) -> Example:
        """A source and its target, of which every token is trained, the first one too."""
        return cls(source, target, where, len(target), len(source) + len(target))

    @classmethod
    def of_preference(cls, chosen: Example, rejected: Example) -> Example:
        """Two texts that are compared, or two targets of a source, which stands before each.

        Where all of one is cut that would be compared, nothing is trained.
        """
        trained = chosen.trained + rejected.trained if chosen.trained and rejected.trained else 0
        ids, labels = [*chosen.input_ids, *rejected.input_ids], [*chosen.labels, *rejected.labels]
        return cls(ids, labels, chosen.where, trained, chosen.tokens + rejected.tokens, second=len(chosen.labels))

    @property
    def texts(self) -> tuple[Example, ...]:
        """What the model reads by itself: the two texts of a pair that is compared, else the example."""
        if not self.second:
            return (self,)
        ids, labels, read, at = self.input_ids, self.labels, self._second_read, self.second
        of_one = Example.of_pair if self.target_tokens else Example.of_text
        return of_one(ids[:read], labels[:at], self.where), of_one(ids[read:], labels[at:], self.where)

    @property
    def _second_read(self) -> int:
        """Where the second text begins in the tokens: of two targets the source is the same, and there twice."""
        return len(self.input_ids) // 2 if self.second and self.target_tokens else self.second

    @property
    def longest(self) -> int:
        """The tokens of its longest text, of an encoder-decoder of its source."""
        return max(self._second_read, len(self.input_ids) - self._second_read)

    @property
    def longest_target(self) -> int:
        """The tokens of its longest target: none of a text."""
        return max(self.second, len(self.labels) - self.second) if self.target_tokens else 0

    def cut(self, most: int) -> Example:
        """The same with at most so many tokens in each of its texts, a source and its target by themselves."""
        if max(self.longest, self.longest_target) <= most:
            return self
        if self.second:
            chosen, rejected = self.texts
            return Example.of_preference(chosen.cut(most), rejected.cut(most))
        ids, labels = self.input_ids[:most], self.labels[:most]
        if self.target_tokens or len(self.labels) > 1:
            of_one = Example.of_pair if self.target_tokens else Example.of_text
            return replace(of_one(ids, labels, self.where), desirable=self.desirable)
        types = None if self.token_type_ids is None else self.token_type_ids[:most]
        return replace(self, input_ids=ids, tokens=len(ids), token_type_ids=types)

    @classmethod
    def of_class(cls, ids: list[int], number: int, where: str, types: list[int] | None = None) -> Example:
        """A text, or two in one, with the number of its class."""
        return cls(ids, [number], where, 1, len(ids), types)


def with_reference(examples: Sequence[Example], known: Iterable[Iterable[float]]) -> list[Example]:
    """Rows with the log-likelihood that each of their texts had before training: `known` has a number for each text."""
    rows = zip(examples, known, strict=True)
    return [replace(each, reference=tuple(map(float, numbers))) for each, numbers in rows]


def with_mismatched(examples: Sequence[Example], most: int) -> list[Example]:
    """Rows with the answer of the row before behind their own prompt, a text of `most` tokens; a single one has none.

    The first row has the last one's, so that the same answers stand behind other prompts, each once.
    """
    if len(examples) < 2:
        return list(examples)
    before = zip(examples, [examples[-1], *examples[:-1]], strict=True)
    return [replace(row, mismatched=_with_answer_of(other, row, most)) for row, other in before]


def _with_answer_of(other: Example, row: Example, most: int) -> Example:
    """The tokens before the first trained one of `row`, or its source, and those of `other` from there on."""
    if row.target_tokens:
        return Example.of_pair(row.input_ids, other.labels, row.where)
    border, first = (next(at for at, it in enumerate(x.labels) if at and it != IGNORED) for x in (row, other))
    ids = [*row.input_ids[:border], *other.input_ids[first:]]
    labels = [*[IGNORED] * border, *other.labels[first:]]
    return Example.of_text(ids[:most], labels[:most], row.where)


def share_numbers(examples: Iterable[Example], known: dict[int, int]) -> None:
    """Let equal tokens of examples be one object, of those that are `known` or become so.

    A number above 256 is an object of 32 bytes each time that a tokenizer or a file gives it, beside the 8 of its place
    in the list.
    """
    for example in examples:
        for numbers in (example.input_ids, example.labels, example.token_type_ids):
            if numbers is not None:
                numbers[:] = map(known.setdefault, numbers, numbers)


@dataclass(frozen=True)
class DatasetFacts:
    """What a renderer takes from the training rows; a few words that stand for all of them.

    Attributes:
        system_prompt: The one that every conversation begins with; None when they differ or have none.
        conversations: There are conversations to render.
        pairs: Some rows have two texts to classify together.
        unpaired: Answers stand alone, each with a label that calls it good or bad.
    """

    system_prompt: str | None = None
    conversations: bool = True
    labels: tuple[str, ...] = ()
    pairs: bool = False
    unpaired: bool = False


@dataclass(frozen=True, eq=False)
class RowRenderer(ABC):
    """The one way from records to tokens, for one task and tokenizer; what it has itself is for texts read as they are.

    Attributes:
        tokenizer: The model's tokenizer.
        labels: The names of the classes, a class's number being its place; none where answers are text.
        system_prompt: The one that every training conversation had; None where there was none.
        notes: What was decided, a sentence each.
        reads_source: The model reads a prompt with an encoder, as plain text, to its end.
    """

    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    labels: tuple[str, ...] = ()
    system_prompt: str | None = None
    notes: tuple[str, ...] = ()
    special_tokens_in_text: SpecialTokensInText = "text"
    reads_source: ClassVar[bool] = True

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template that is used; None where conversations are not rendered."""
        return None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer; none where none is given."""
        return ()

    @property
    def knows_languages(self) -> bool:
        """Whether the tokenizer writes the language of a text into its tokens."""
        return False

    @property
    def prompt_template(self) -> ChatTemplate | None:
        """What prints the conversations that are asked; None where what is asked is plain text."""
        return None

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """The tokenizer's control tokens, and what is done with them in the text of rows and prompts."""
        from loraft.tokenization.content_marks import ControlTokens

        return ControlTokens(self.tokenizer, self.special_tokens_in_text)

    @property
    @abstractmethod
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that rows and prompts are rendered the same way later."""

    def conversing(self) -> RowRenderer:
        """The same, able to print conversations: as chatml where the tokenizer has no chat template.

        Raises:
            ModelError: The tokenizer can end no turn, or the model reads texts and no conversations.
        """
        message = "the model reads one text and writes another: it holds no conversation"
        raise ModelError(message, remedy="Give it each text alone, as a prompt.")

    def parts(self, record: Record) -> Sequence[Record]:
        """The rows that a record becomes: itself, unless the config splits it."""
        return [record]

    @abstractmethod
    def render(self, record: Record) -> Any:
        """The text of a record.

        Raises:
            DataError: It cannot be rendered.
        """

    @abstractmethod
    def findings(self, rendered: Any) -> tuple[str, ...]:
        """What a person should know of a row that became tokens, each with what can be done."""

    @abstractmethod
    def examples(self, rendered: Sequence[Any], where: Sequence[str]) -> Sequence[Example]:
        """Rendered records as tokens and labels, not yet cut to any length.

        Raises:
            DataError: A text is too long to be read whole, and cannot be cut.
        """

    @abstractmethod
    def beginning(self, rendered: Any, limits: DataSection) -> Any:
        """The record; of one with a long text that exceeds the limits a beginning that exceeds them too.

        The beginning has the first tokens of the whole, so that what is cut to the limits is the same.

        Raises:
            ManyTokensError: A text cannot be cut, and is certain to exceed the limits.
            DataError: A text is too long to be read whole, and cannot be cut.
        """

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds the limits, its length after `least`; None where it does not."""
        if len(example.input_ids) <= limits.max_length:
            return None
        return f"has {least}{len(example.input_ids):,} tokens, more than data.max_length {limits.max_length:,}"

    @abstractmethod
    def cut(self, rendered: Any, example: Example, limits: DataSection, choice: str) -> Sequence[Example]:
        """What is kept of an example that is too long."""

    @abstractmethod
    def marked(self, example: Example) -> str:
        """The row's text with what is trained in ⟦ ⟧."""

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The tokens that an answer to `messages` follows, which may call `tools`, or that an encoder reads to give it.

        Where no template prints them, they are those of the last text.

        Raises:
            DataError: They cannot be printed, or hold what is refused.
        """
        if tools:
            raise DataError("this model has no chat template, which would print them", key="tools")
        return self.plain_ids(messages[-1].content)

    @abstractmethod
    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a text that is read as it is.

        Raises:
            DataError: It holds what is refused.
        """

    def said(self, text: str, ids: Sequence[int] = ()) -> str:
        """What an answer says, of its text and its tokens, without thoughts and the like before that."""
        return text if self.prompt_template is None else self.prompt_template.said(text, ids)

    def remembered(self, text: str, ids: Sequence[int]) -> str:
        """What a conversation goes on with of an answer, of its text and its tokens."""
        return text if self.prompt_template is None else self.prompt_template.remembered(text, ids)
