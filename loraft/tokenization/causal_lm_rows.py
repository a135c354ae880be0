"""Tokens and the loss mask: made here and only here, for training, evaluation and generation alike.

Which characters of a rendering are trained, and where prompts end, is found in the text (`assistant_mask`), and offsets
tell which tokens those are; one with any trained character in it is trained. No token is found by comparing ids, so a
padding token that is also the end of a turn stays trained. The tokens before an answer are those that generation feeds,
whatever the tokenizer would join (`boundaries`).

The template prints what a conversation begins with: the tokenizer adds nothing to it, as transformers'
`apply_chat_template` has it. Plain text and completions are tokenized as the tokenizer does it by itself, and end with
its end-of-text token.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from loraft.config.sections import DataSection
from loraft.errors import DataError, ModelError
from loraft.rows.formats import Conversation, Message, PromptCompletion, Record, Text, Tools
from loraft.tokenization.assistant_mask import ChatTemplate
from loraft.tokenization.boundaries import BorderedText, Encoded, TextEncoder
from loraft.tokenization.examples import IGNORED, Example, RowRenderer
from loraft.tokenization.long_texts import TOKENIZED_TOGETHER, LongTexts, Span
from loraft.tokenization.template_sandbox import choose_template

SPACED = (
    "the tokenizer puts a space before the answer, which follows its prompt without one: "
    "end the header of an answer in the chat template with a line end or a control token"
)
OTHER_SYSTEM = (
    "the system prompt is not that of the first rows, which answers are asked with; `system` asks with another one"
)


@dataclass
class RenderedRow:
    """A record as text.

    Attributes:
        source: What is tokenized. Where a template did not print it, the tokenizer adds its own beginning and the
            end-of-text token follows.
        trained: Which of its characters are trained.
        findings: What a person should know of it, each with what can be done; tokenizing may add to it.
    """

    source: BorderedText
    trained: tuple[Span, ...]
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CausalLMRenderer(RowRenderer):
    """The one way from records to tokens, for one tokenizer: a fast one, which tells offsets.

    Attributes:
        template: The chat template that is used; None where conversations cannot be rendered.
        train_on: Which tokens are trained.
        plain: A prompt is plain text, whatever template there is: that is what was learned.
        split_turns: Each answer of a conversation is a row of its own, behind the prompt that generation feeds.
    """

    template: ChatTemplate | None = None
    train_on: Literal["completions", "last", "all"] = "completions"
    plain: bool = False
    split_turns: bool = False
    reads_source: ClassVar[bool] = False

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, *, chat_template: str = "auto", conversations: bool = True, **own: Any
    ) -> CausalLMRenderer:
        """The renderer for a tokenizer and the settings of a `data` section.

        Args:
            tokenizer: The model's.
            chat_template: `data.chat_template`.
            conversations: There are conversations to render; otherwise no template is made up for a tokenizer that
                has none, or one that fails, and a prompt is plain text.
            own: Other fields of the renderer.

        Raises:
            DataError: The tokenizer tells no offsets, or the template cannot be read or rendered.
        """
        if not tokenizer.is_fast:
            message = "the tokenizer is a slow one, which cannot tell where in the text a token is"
            raise DataError(message, key="model.tokenizer", remedy="name a model or folder with a tokenizer.json")
        made = cls(tokenizer, **own)
        if chat_template == "auto" and not tokenizer.chat_template and not conversations:
            return made
        text, notes = choose_template(tokenizer, chat_template)
        if text is None:
            return made
        origin = tokenizer.name_or_path if chat_template == "auto" else chat_template
        try:
            template = ChatTemplate.probed(tokenizer, text, origin or "the tokenizer")
        except DataError as error:
            if conversations or chat_template != "auto":
                raise
            return replace(made, notes=(f"{error.problems[0].message}; a prompt is given as it is, as plain text",))
        return replace(made, template=template, notes=(*notes, *template.notes))

    def conversing(self) -> CausalLMRenderer:
        """The same, able to print conversations: as chatml where the tokenizer has no chat template.

        Raises:
            ModelError: The tokenizer can end no turn.
        """
        if self.template is not None:
            if not self.plain:
                return self
            note = "it learned plain text, and conversations are printed with a chat template that it has not learned"
            return replace(self, plain=False, notes=(note,))
        asked = self.special_tokens_in_text
        made = self.for_tokenizer(self.tokenizer, system_prompt=self.system_prompt, special_tokens_in_text=asked)
        if made.template is None:
            message = "the tokenizer has neither a chat template nor an end-of-text token: it prints no conversation"
            raise ModelError(message, remedy="Give it a prompt alone.")
        note = "the tokenizer has no chat template: conversations are printed as chatml, which the model may not know"
        return replace(made, notes=(note,))

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template that is used."""
        return self.template.text if self.template is not None else None

    @property
    def prompt_template(self) -> ChatTemplate | None:
        """What prints the conversations that are asked; None where what is asked is plain text."""
        return None if self.plain else self.template

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end of text, and the chat's end of turn."""
        end = self.template.end if self.template is not None else None
        turns = [token for token in (end.stop_token, end.stop_token_of_call) if token] if end is not None else []
        ends = (self.tokenizer.eos_token_id, *map(self.tokenizer.convert_tokens_to_ids, turns))
        return tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))

    def examples(self, rendered: Sequence[RenderedRow], where: Sequence[str]) -> list[Example]:
        """Rendered records as tokens and labels; tokenized together, which is many times as fast as one by one."""
        found: list[Example] = []
        for start in range(0, len(rendered), TOKENIZED_TOGETHER):
            chosen = rendered[start : start + TOKENIZED_TOGETHER]
            encoded = self._encoder.encode([each.source for each in chosen])
            found += map(self._example, chosen, encoded, where[start : start + TOKENIZED_TOGETHER])
        return found

    def beginning(self, rendered: RenderedRow, limits: DataSection) -> RenderedRow:
        """A beginning that is itself too long, where a text is long enough for that to matter; else the record."""
        source = rendered.source
        text = LongTexts(self.tokenizer).beginning(source.text, limits.max_length)
        if len(text) == len(source.text):
            return rendered
        spans = tuple((start, min(stop, len(text))) for start, stop in rendered.trained if start < len(text))
        return replace(rendered, source=source.beginning(len(text)), trained=spans)

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The tokens that an answer follows; where plain text was learned, or there is no template, the last text's."""
        if self.prompt_template is None:
            return super().prompt_ids(messages, tools)
        protected = self.control_tokens.protected(messages, tools)
        printed, borders = replace(self.prompt_template, tools=protected.tools).asked(protected.messages)
        text, places, literal = protected.unmarked(printed, borders)
        return self._encoder.encode([BorderedText(text, tuple(places), literal)])[0].ids

    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a text that no template printed."""
        return self._encoder.encode([self._plain_text(text)])[0].ids

    def parts(self, record: Record) -> Sequence[Record]:
        """The rows that a record becomes: where turns are split, one for each answer that is trained."""
        if not self.split_turns or not isinstance(record, Conversation):
            return [record]
        found = []
        for turn in self._trained_turns(record):
            before = [
                replace(each, train=False if each.role == "assistant" else None) for each in record.messages[:turn]
            ]
            found.append(replace(record, messages=(*before, replace(record.messages[turn], train=True))))
        return found or [record]

    def findings(self, rendered: RenderedRow) -> tuple[str, ...]:
        """What a person should know of a row that became tokens, each with what can be done."""
        return rendered.findings

    def render(self, record: Record) -> RenderedRow:
        """The text of a record and its trained characters.

        Raises:
            DataError: The template cannot render it, or renders it so that the answers cannot be told.
        """
        if isinstance(record, Conversation):
            return self._conversation(record)
        assert isinstance(record, PromptCompletion | Text), "a pair or a labelled text has a renderer of its own"
        if isinstance(record, Text):
            text, border = record.text, 0
        else:
            text, border = record.prompt + record.completion, len(record.prompt)
        source = replace(self._plain_text(text, border), whole=isinstance(record, Text))
        trained_from = 0 if self.train_on == "all" else border
        return RenderedRow(source, ((trained_from, len(text)),), self.control_tokens.findings([text]))

    def _plain_text(self, text: str, border: int = 0) -> BorderedText:
        """Text that no template printed, as the tokenizer takes it."""
        self.control_tokens.refuse([text])
        literal = ((0, len(text)),) if self.control_tokens.as_text else ()
        return BorderedText(text, (border,) if border else (), literal, opens=True)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @property
    def recorded(self) -> Mapping[str, object]:
        """What is saved beside the weights, so that prompts are made the same way."""
        return {"system_prompt": self.system_prompt, "plain": self.plain, **self.control_tokens.recorded}

    def cut(self, rendered: RenderedRow, example: Example, limits: DataSection, choice: str) -> list[Example]:
        """What is kept of an example that is too long: its beginning, or all of it in pieces; no token is invented."""
        ids, labels, most = example.input_ids, example.labels, limits.max_length
        if choice == "truncate":
            return [Example.of_text(ids[:most], labels[:most], example.where)]
        starts = [*range(0, len(ids), most)]
        if len(ids) - starts[-1] == 1:  # a piece of one token would train nothing: the end of the text would be lost
            starts[-1] -= 1
        pairs = pairwise([*starts, len(ids)])
        return [Example.of_text(ids[start:stop], labels[start:stop], example.where) for start, stop in pairs]

    def marked(self, example: Example) -> str:
        """The row's text with what is trained in ⟦ ⟧: never its first token, which nothing stands before."""
        text = ""
        tokens = zip(example.input_ids, (IGNORED, *example.labels[1:]), strict=True)
        for trained, alike in groupby(tokens, lambda token: token[1] != IGNORED):
            part = str(self.tokenizer.decode([token for token, _ in alike]))
            text += f"⟦{part}⟧" if trained else part
        return text

    def _conversation(self, conversation: Conversation) -> RenderedRow:
        if self.template is None:
            message = "the tokenizer has neither a chat template nor an end-of-text token"
            remedy = "write a .jinja file that ends each answer with a token of the vocabulary"
            raise DataError(message, key="data.chat_template", remedy=remedy)
        protected = self.control_tokens.protected(conversation.messages, conversation.tools)
        template = replace(self.template, tools=protected.tools)
        if self.train_on == "all":
            kept_out = [index for index, message in enumerate(protected.messages) if message.train is False]
            found = template.turns(protected.messages, kept_out, heed_marks=False)
            edges = [0, *(edge for span in found.spans for edge in span), len(found.text)]
            found = replace(found, spans=tuple(zip(edges[::2], edges[1::2], strict=True)))
        else:
            trained, last = self._trained_turns(conversation), len(protected.messages) - 1
            apart = self.split_turns and trained == [last]
            found = template.answer(protected.messages) if apart else template.turns(protected.messages, trained)
        edges = [edge for span in found.spans for edge in span]
        text, places, literal = protected.unmarked(found.text, [*edges, *found.borders])
        edges, borders = places[: len(edges)], places[len(edges) :]
        spans = tuple(zip(edges[::2], edges[1::2], strict=True))
        # Rows that come in a stream are rendered after what they have in common was taken from the first of them.
        other = self.system_prompt is not None and conversation.system_prompt != self.system_prompt
        findings = (*found.findings, *protected.findings, *([OTHER_SYSTEM] if other else []))
        return RenderedRow(BorderedText(text, tuple(borders), literal), spans, findings)

    def _trained_turns(self, conversation: Conversation) -> list[int]:
        messages = conversation.messages
        if asking := [message.role for message in messages if message.train and message.role != "assistant"]:
            message = f"{self.train_on} trains turns of the assistant, and train: true stands at one of the {asking[0]}"
            remedy = "write data.train_on: all, and train: false at the turns that are not to be learned"
            raise DataError(message, key="data.train_on", remedy=remedy)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        wanted = answers[-1:] if self.train_on == "last" else answers
        return [i for i in answers if (i in wanted if messages[i].train is None else messages[i].train)]

    def _example(self, rendered: RenderedRow, encoded: Encoded, where: str) -> Example:
        if encoded.spaced:
            rendered.findings = (*rendered.findings, SPACED)
        ids, offsets = encoded.ids, encoded.offsets
        labels = [IGNORED] * len(ids)
        for start, stop in rendered.trained:
            first = encoded.starts.get(start)
            if first is None:
                first = bisect_right(offsets, start, key=lambda offset: offset[1])
            # White space at the very end may be cut from a token's offsets: what ends with the text is open there.
            to_the_end = stop == len(rendered.source.text)
            last = len(ids) if to_the_end else bisect_left(offsets, stop, key=lambda offset: offset[0])
            labels[first:last] = ids[first:last]
        eos = self.tokenizer.eos_token_id
        if rendered.source.opens and isinstance(eos, int):
            if encoded.closed or ids[-1:] != [eos]:
                ids = [*ids, eos]
            labels = [*labels, eos][: len(ids)]
        return Example.of_text(list(ids), labels, where)
