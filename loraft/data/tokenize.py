"""Tokens and the loss mask: made here and only here, for training, evaluation and generation alike.

This module knows one way from a record to tokens. A conversation is rendered whole and tokenized once; which
characters are trained is found in the text (`turns.py`), and offsets tell which tokens those are. No token is ever
found by comparing ids, so a padding token that is also the end of a turn stays trained.

- In a conversation an answer is trained from where the prompt of a generation would end to the end of its
  end-of-turn token.
- Plain text and completions are tokenized as the tokenizer does it by itself, prompt and completion in one piece,
  and end with the tokenizer's end-of-text token.
- A token with any trained character in it is trained: one that lies across the border between a prompt and its
  completion too, for it may be the whole answer (`"Answer: "` and `"yes"` end in the one token `" yes"`).
- The template prints what a conversation begins with: the tokenizer adds nothing to it, as transformers'
  `apply_chat_template` has it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from loraft.config.schema import DataSection
from loraft.data.examples import IGNORED, Example
from loraft.data.formats import Completion, Conversation, Message, Record, Text
from loraft.data.long_texts import LONG, LongTexts
from loraft.data.templates import choose_template
from loraft.data.turns import ChatTemplate, Span
from loraft.errors import DataError

__all__ = ["Rendered", "Renderer"]

TrainOn = Literal["completions", "last", "all"]


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
        template: The chat template that is used; None where conversations cannot be rendered.
        train_on: Which tokens are trained.
        system_prompt: The system prompt that every training conversation had; generation uses it by default.
        notes: What was decided, a sentence each.
        plain: A prompt is plain text, whatever template there is: that is what was learned.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    train_on: TrainOn = "completions"
    system_prompt: str | None = None
    notes: tuple[str, ...] = ()
    plain: bool = False

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str = "auto",
        train_on: TrainOn = "completions",
        system_prompt: str | None = None,
        conversations: bool = True,
    ) -> Renderer:
        """The renderer for a tokenizer and the settings of a `data` section.

        Args:
            tokenizer: The model's tokenizer.
            chat_template: `data.chat_template`.
            train_on: `data.train_on`.
            system_prompt: What generation opens with by default.
            conversations: There are conversations to render; otherwise no template is made up for a tokenizer that
                has none, and a prompt is plain text.

        Raises:
            DataError: The tokenizer tells no offsets, or the template cannot be read or rendered.
        """
        if not tokenizer.is_fast:
            raise DataError(
                "the tokenizer is a slow one, which cannot tell where in the text a token is",
                key="model.tokenizer",
                remedy="name a model or folder with a tokenizer.json",
            )
        if chat_template == "auto" and not tokenizer.chat_template and not conversations:
            return cls(tokenizer, None, train_on, system_prompt)
        text, notes = choose_template(tokenizer, chat_template)
        if text is None:
            return cls(tokenizer, None, train_on, system_prompt, notes)
        origin = tokenizer.name_or_path if chat_template == "auto" else chat_template
        template = ChatTemplate.probed(tokenizer, text, origin or "the tokenizer")
        return cls(tokenizer, template, train_on, system_prompt, (*notes, *template.notes))

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template that is used."""
        return self.template.text if self.template is not None else None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end of text, and the chat's end of turn."""
        turn = self.template.end_of_turn if self.template is not None else None
        ends = (self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(turn) if turn else None)
        return tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))

    def example(self, record: Record, where: str) -> Example:
        """One record as tokens and labels.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        try:
            rendered = self.render(record)
        except DataError as error:
            raise DataError.several([replace(problem, where=where) for problem in error.problems]) from None
        return self.examples([rendered], [where])[0]

    def examples(self, rendered: Sequence[Rendered], where: Sequence[str]) -> list[Example]:
        """Rendered records as tokens and labels; tokenized together, which is many times as fast as one by one."""
        return list(self._together(rendered, where))

    def beginning(self, rendered: Rendered, limits: DataSection) -> Rendered:
        """A beginning that is itself too long, where a text is long enough for that to matter; else the record."""
        text = LongTexts(self.tokenizer).beginning(rendered.text, limits.max_length)
        if len(text) == len(rendered.text):
            return rendered
        spans = tuple((start, min(stop, len(text))) for start, stop in rendered.trained if start < len(text))
        return replace(rendered, text=text, trained=spans)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that an answer to `messages` follows: what a conversation was trained with up to the answer.

        Without a chat template, or where plain text was learned, this is the last message's text as the tokenizer
        reads it.
        """
        if self.template is None or self.plain:
            (read,) = LongTexts(self.tokenizer, offsets=True).read([messages[-1].content])
            ids = read.ids
            return ids[:-1] if _is_closed(ids, read.offsets, self.tokenizer.eos_token_id) else ids
        text = self.template.prompt(messages)
        return LongTexts(self.tokenizer, special=False).read([text])[0].ids

    def render(self, record: Record) -> Rendered:
        """The text of a record and its trained characters.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        if isinstance(record, Conversation):
            return self._conversation(record)
        assert isinstance(record, Completion | Text), "a pair or a labelled text has a renderer of its own"
        if isinstance(record, Completion):
            text = record.prompt + record.completion
            start = 0 if self.train_on == "all" else len(record.prompt)
            return Rendered(text, ((start, len(text)),), whole=False)
        return Rendered(record.text, ((0, len(record.text)),), whole=False)

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that prompts are made the same way."""
        return {"system_prompt": self.system_prompt, "plain": self.plain}

    def too_long(self, example: Example, limits: DataSection, *, least: str = "") -> str | None:
        """How an example exceeds `data.max_length`; None where it does not."""
        if len(example.input_ids) <= limits.max_length:
            return None
        return f"has {least}{len(example.input_ids):,} tokens, more than data.max_length {limits.max_length:,}"

    def cut(self, rendered: Rendered, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """What is kept of an example that is too long: its beginning, or all of it in pieces; no token is invented."""
        ids, labels, most = example.input_ids, example.labels, limits.max_length
        if choice == "truncate":
            return [Example(ids[:most], labels[:most], example.where)]
        starts = [*range(0, len(ids), most)]
        if len(ids) - starts[-1] == 1:  # a piece of one token would train nothing: the end of the text would be lost
            starts[-1] -= 1
        pairs = pairwise([*starts, len(ids)])
        return [Example(ids[start:stop], labels[start:stop], example.where) for start, stop in pairs]

    def marked(self, example: Example) -> str:
        """The row's text with what is trained in ⟦ ⟧."""
        text, at = "", 0
        trained = [label != IGNORED for label in example.labels]
        for place in range(1, len(trained) + 1):
            if place == len(trained) or trained[place] != trained[at]:
                part = str(self.tokenizer.decode(example.input_ids[at:place]))
                text += f"⟦{part}⟧" if trained[at] else part
                at = place
        return text

    def _conversation(self, conversation: Conversation) -> Rendered:
        if self.template is None:
            raise DataError(
                "the tokenizer has neither a chat template nor an end-of-text token",
                key="data.chat_template",
                remedy="write a .jinja file that ends each answer with a token of the vocabulary",
            )
        messages, template = conversation.messages, replace(self.template, tools=conversation.tools)
        if self.train_on == "all":
            kept_out = [index for index, message in enumerate(messages) if message.train is False]
            text, spans = template.turns(messages, kept_out, heed_marks=False)
            edges = [0, *(edge for span in spans for edge in span), len(text)]
            return Rendered(text, tuple(zip(edges[::2], edges[1::2], strict=True)), whole=True)
        if asking := next(
            (message.role for message in messages if message.train and message.role != "assistant"), None
        ):
            raise DataError(
                f"{self.train_on} trains turns of the assistant, and train: true stands at one of the {asking}",
                key="data.train_on",
                remedy="write data.train_on: all, and train: false at the turns that are not to be learned",
            )
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        wanted = answers[-1:] if self.train_on == "last" else answers
        asked = [i for i in answers if (i in wanted if messages[i].train is None else messages[i].train)]
        text, spans = template.turns(messages, asked)
        return Rendered(text, spans, whole=True)

    def _together(self, rendered: Sequence[Rendered], where: Sequence[str]) -> Iterator[Example]:
        """Conversations and plain texts apart, whose special tokens differ; and long ones that are learned whole."""
        found: dict[int, Example] = {}
        all_of_it = [len(each.text) > LONG and each.trained == ((0, len(each.text)),) for each in rendered]
        for whole, rough in ((True, False), (True, True), (False, False), (False, True)):
            chosen = [i for i, each in enumerate(rendered) if (each.whole, all_of_it[i]) == (whole, rough)]
            texts = LongTexts(self.tokenizer, special=not whole, offsets=True, rough=rough)
            for index, read in zip(chosen, texts.read([rendered[index].text for index in chosen]), strict=True):
                found[index] = self._example(rendered[index], read.ids, read.offsets, where[index])
        return (found[index] for index in range(len(rendered)))

    def _example(self, rendered: Rendered, ids: list[int], offsets: Sequence[Span], where: str) -> Example:
        eos = self.tokenizer.eos_token_id
        own = len(ids) - (not rendered.whole and _is_closed(ids, offsets, eos))
        labels = [IGNORED] * own
        for start, stop in rendered.trained:
            first = bisect_right(offsets, start, hi=own, key=lambda offset: offset[1])
            # White space at the very end may be cut from a token's offsets: what ends with the text is open there.
            to_the_end = stop == len(rendered.text)
            last = own if to_the_end else bisect_left(offsets, stop, hi=own, key=lambda offset: offset[0])
            labels[first:last] = ids[first:last]
        if not rendered.whole and isinstance(eos, int):
            if ids[-1:] != [eos]:
                ids.append(eos)
            labels += [eos][: len(ids) - own]
        return Example(ids, labels, where)


def _is_closed(ids: Sequence[int], offsets: Sequence[Span], eos: int | None) -> bool:
    """Whether the tokenizer itself put its end-of-text token behind the text."""
    return len(ids) > 0 and ids[-1] == eos and tuple(offsets[-1]) == (0, 0)
