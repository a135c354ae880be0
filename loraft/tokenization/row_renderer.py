"""What turns the records of a task into examples: one renderer a task, all of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import DataSection, TaskName
from loraft.rows.formats import ClassificationRecord, Conversation, Message, Record
from loraft.tokenization.causal_lm_rows import CausalLMRenderer
from loraft.tokenization.classification_rows import ClassificationRenderer, labels_of
from loraft.tokenization.control_tokens import ControlTokens
from loraft.tokenization.examples import Example
from loraft.tokenization.seq2seq_rows import Seq2SeqRenderer

__all__ = ["DatasetFacts", "RowRenderer", "common_system_prompt", "dataset_facts", "renderer_of"]


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


def dataset_facts(task: TaskName, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
    """What a renderer takes from `records`, which are all that will be rendered: labels are theirs."""
    if task == "seq_cls":
        pairs = any(isinstance(record, ClassificationRecord) and record.second is not None for record in records)
        return DatasetFacts(labels=tuple(data.labels) or labels_of(records), pairs=pairs)
    conversations = not records or any(isinstance(record, Conversation) for record in records)
    return DatasetFacts(common_system_prompt(records), conversations)


def renderer_of(
    task: TaskName, data: DataSection, tokenizer: PreTrainedTokenizerBase, learned: DatasetFacts
) -> RowRenderer:
    """The renderer of a run.

    Args:
        task: What is learned.
        data: The config's section.
        tokenizer: The model's tokenizer.
        learned: What the training rows told.

    Raises:
        DataError: The tokenizer or the template will not do, or the rows have no classes to learn.
    """
    if task == "seq2seq_lm":
        return Seq2SeqRenderer.for_tokenizer(
            tokenizer,
            prefix=data.source_prefix,
            source_lang=data.source_lang,
            target_lang=data.target_lang,
            special_tokens_in_text=data.special_tokens_in_text,
        )
    if task == "seq_cls":
        renderer = ClassificationRenderer.to_train(tokenizer, learned.labels, pairs=learned.pairs)
        return replace(renderer, special_tokens_in_text=data.special_tokens_in_text)
    made = CausalLMRenderer.for_tokenizer(
        tokenizer,
        chat_template=data.chat_template,
        train_on=data.train_on,
        system_prompt=learned.system_prompt,
        conversations=learned.conversations,
    )
    return replace(
        made,
        plain=not learned.conversations,
        split_turns=data.split_turns,
        special_tokens_in_text=data.special_tokens_in_text,
    )


def common_system_prompt(records: Sequence[Record]) -> str | None:
    """The system prompt that every conversation begins with; None when they differ or have none."""
    prompts: set[str | None] = set()
    for record in records:
        first = record.messages[0] if isinstance(record, Conversation) else None
        prompts.add(first.content if first is not None and first.role == "system" else None)
    return prompts.pop() if len(prompts) == 1 else None
