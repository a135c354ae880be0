"""Tokens and the loss mask: made here and only here, for training, evaluation and generation alike.

This module knows one way from a record to tokens. A conversation is rendered whole and tokenized once; which
characters are trained is found in the text, and offsets tell which tokens those are. No token is ever found by
comparing ids, so a padding token that is also the end of a turn stays trained.

- In a conversation an answer is trained from the end of its header to the end of its end-of-turn mark.
- Plain text and completions are tokenized as the tokenizer does it by itself, prompt and completion in one piece,
  and end with the tokenizer's end-of-text token. A token that lies across the border belongs to the prompt.
- The template prints what a conversation begins with: the tokenizer adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from loraft.data.batches import IGNORED
from loraft.data.formats import Completion, Conversation, Message, Record
from loraft.data.templates import choose_template, render
from loraft.errors import DataError, Refused

__all__ = ["Example", "Rendered", "Renderer", "Span"]

TrainOn = Literal["completions", "last", "all"]
Span = tuple[int, int]
"""Characters `start … end - 1` of a text."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row as tokens.

    Attributes:
        input_ids: Its tokens.
        labels: The same where a token is trained, else -100.
        where: The row's place.
    """

    input_ids: list[int]
    labels: list[int]
    where: str

    @property
    def trained(self) -> int:
        """How many tokens are trained; the first of a row never is, since nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Rendered:
    """A record as text.

    Attributes:
        text: What is tokenized.
        trained: Which of its characters are trained.
        whole: A template printed it all; otherwise the tokenizer adds its own beginning, and the end-of-text token
            follows.
    """

    text: str
    trained: tuple[Span, ...]
    whole: bool


@dataclass(frozen=True, eq=False)
class Renderer:
    """The one way from records to tokens, for one tokenizer.

    Attributes:
        tokenizer: A fast one, which tells offsets.
        chat_template: The text of the template that is used; None where conversations cannot be rendered.
        train_on: Which tokens are trained.
        system_prompt: The system prompt that every training conversation had; generation uses it by default.
        notes: What was decided, a sentence each.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    train_on: TrainOn = "completions"
    system_prompt: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str = "auto",
        train_on: TrainOn = "completions",
        system_prompt: str | None = None,
    ) -> Renderer:
        """The renderer for a tokenizer and the settings of a `data` section.

        Raises:
            DataError: The tokenizer tells no offsets, or the template's file cannot be read.
        """
        if not tokenizer.is_fast:
            raise DataError(
                "the tokenizer is a slow one, which cannot tell where in the text a token is",
                key="model.tokenizer",
                remedy="name a model or folder with a tokenizer.json",
            )
        template, notes = choose_template(tokenizer, chat_template)
        return cls(tokenizer, template, train_on, system_prompt, notes)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end of text, and the chat's end of turn."""
        ends = [self.tokenizer.eos_token_id] if isinstance(self.tokenizer.eos_token_id, int) else []
        if self.chat_template is not None:
            ends += self._end_of_turn()
        return tuple(dict.fromkeys(ends))

    def example(self, record: Record, where: str) -> Example:
        """One record as tokens and labels.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        return self.examples([self.render(record)], [where])[0]

    def examples(self, rendered: Sequence[Rendered], where: Sequence[str]) -> list[Example]:
        """Rendered records as tokens and labels; tokenized together, which is many times as fast as one by one."""
        return [
            Example(ids, labels, place) for (ids, labels), place in zip(self._tokenized(rendered), where, strict=True)
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that an answer to `messages` follows: what a conversation was trained with up to the answer.

        Without a chat template this is the last message's text as the tokenizer reads it.
        """
        if self.chat_template is None:
            return list(self.tokenizer(messages[-1].content)["input_ids"])
        text = render(self.tokenizer, self.chat_template, messages, open_answer=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self, record: Record) -> Rendered:
        """The text of a record and its trained characters.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        if isinstance(record, Conversation):
            return self._conversation(record.messages)
        if isinstance(record, Completion):
            text = record.prompt + record.completion
            start = 0 if self.train_on == "all" else len(record.prompt)
            return Rendered(text, ((start, len(text)),), whole=False)
        return Rendered(record.text, ((0, len(record.text)),), whole=False)

    def _conversation(self, messages: tuple[Message, ...]) -> Rendered:
        if self.chat_template is None:
            raise DataError(
                "the tokenizer has neither a chat template nor an end-of-text token",
                key="data.chat_template",
                remedy="write a .jinja file that ends each answer with a token of the vocabulary",
            )
        text = render(self.tokenizer, self.chat_template, messages)
        if self.train_on == "all":
            return Rendered(text, ((0, len(text)),), whole=True)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        wanted = answers[-1:] if self.train_on == "last" else answers
        asked = [i for i in answers if (i in wanted if messages[i].train is None else messages[i].train)]
        return Rendered(text, tuple(self._answer(text, messages, index) for index in asked), whole=True)

    def _answer(self, text: str, messages: tuple[Message, ...], index: int) -> Span:
        """Where the answer `messages[index]` stands in the rendered text, its end-of-turn mark included."""
        assert self.chat_template is not None
        header = render(self.tokenizer, self.chat_template, messages[:index], open_answer=True)
        until = render(self.tokenizer, self.chat_template, messages[: index + 1])
        content = messages[index].content.strip()
        at = text.find(content, len(header))
        closed = until.rfind(content)
        if not text.startswith(header) or at < 0 or closed < 0:
            raise DataError(
                f"the chat template renders the turns before answer {index + 1} otherwise when more follow, "
                "so the answer cannot be found in the text",
                key="data.chat_template",
                remedy="write data.train_on: last, or name another template",
            )
        mark = self._end_mark(until[closed + len(content) :])
        end = at + len(content)
        return len(header), end + len(mark) if text.startswith(mark, end) else end

    def _end_mark(self, tail: str) -> str:
        """What ends a turn, of the text after its content: up to the first special token, or all of it."""
        special = [*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()]
        first = min(((tail.find(token), token) for token in special if token in tail), default=None)
        return tail.rstrip() if first is None else tail[: first[0] + len(first[1])]

    def _tokenized(self, rendered: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Tokens and labels of each text; whole conversations and plain texts differ in their special tokens."""
        found: list[tuple[list[int], list[int]]] = [([], [])] * len(rendered)
        for whole in (True, False):
            places = [place for place, each in enumerate(rendered) if each.whole is whole]
            if places:
                batch: Any = self.tokenizer(
                    [rendered[place].text for place in places],
                    add_special_tokens=not whole,
                    return_offsets_mapping=True,
                    return_attention_mask=False,
                )
                for row, place in enumerate(places):
                    ids, offsets = list(batch["input_ids"][row]), batch["offset_mapping"][row]
                    found[place] = self._labelled(ids, offsets, rendered[place])
        return found

    def _labelled(self, ids: list[int], offsets: Sequence[Span], rendered: Rendered) -> tuple[list[int], list[int]]:
        labels = [
            token if any(start <= begin < end and begin < stop for start, end in rendered.trained) else IGNORED
            for token, (begin, stop) in zip(ids, offsets, strict=True)
        ]
        eos = self.tokenizer.eos_token_id
        if not rendered.whole and isinstance(eos, int) and (not ids or ids[-1] != eos):
            return [*ids, eos], [*labels, eos]
        if not rendered.whole and isinstance(eos, int):
            labels[-1] = eos
        return ids, labels

    def _end_of_turn(self) -> list[int]:
        """The last token of a trained answer, when it is a special one: plain words would end answers too early."""
        try:
            probe = self._conversation((Message("user", "Hello"), Message("assistant", "Hello there")))
        except Refused:
            return []
        _, labels = self._tokenized([probe])[0]
        trained = [label for label in labels if label != IGNORED]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return trained[-1:] if trained and trained[-1] in special else []
