"""Conversations as a chat template prints them, which takes messages in its own way: that is found by rendering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from loraft.errors import DataError
from loraft.figures import shared_beginning
from loraft.rows.formats import THOUGHTS, Message, Tools
from loraft.rows.turns import with_arguments
from loraft.tokenization.content_marks import THINKING, unused_characters
from loraft.tokenization.long_texts import Span
from loraft.tokenization.template_budget import TemplateBoundError
from loraft.tokenization.template_sandbox import Plain, render_bounded
from loraft.tokenization.turn_end import TurnEnd

KEY = "data.chat_template"
FUNCTION = {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}}


@dataclass(frozen=True)
class TemplatePrinter:
    """A chat template in the hands of a tokenizer.

    Attributes:
        tokenizer: It brings the special tokens that the template may print.
        end: What the template prints after the assistant's content.
        tools: The tools of the conversation at hand.
        arguments_as_text: The template prints the arguments of a call as text that it is given; most take an object.
        contents_as_parts: It takes contents as lists of parts, as those of models that see do, and prints no others.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    end: TurnEnd
    origin: str = "the tokenizer"
    tools: Tools = ()
    arguments_as_text: bool = False
    contents_as_parts: bool = False

    @classmethod
    def probed(cls, tokenizer: PreTrainedTokenizerBase, text: str, origin: str = "the tokenizer") -> Self:
        """The template; how it ends turns, and takes contents and arguments, found by rendering a few messages.

        Raises:
            DataError: The template cannot render that conversation.
        """
        template = cls(tokenizer, text, TurnEnd.unknown(tokenizer), origin)
        mark, other = unused_characters(text, 2)
        asked = Message("user", f"Question{other}")
        turns = [asked, Message("assistant", f"Answer{mark}")]
        tools = ((), ({"type": "function", "function": FUNCTION},))  # some print no conversation without
        ways = [replace(template, tools=some, contents_as_parts=parts) for parts in (False, True) for some in tools]
        printed = [(way, said) for way in ways if (said := or_nothing(way.render, turns)) is not None]
        whole = [way for way, said in printed if mark in said and other in said]
        template = (whole or [way for way, _ in printed] or ways)[0]
        last, earlier = template.render(turns), or_nothing(template.render, [*turns, asked]) or ""
        end = template.end.found(last.partition(mark)[2], earlier.partition(mark)[2], tokenizer.eos_token)
        template = replace(template, end=end)
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}
        calls = [asked, Message("assistant", "", more={"tool_calls": [call]})]
        takes_text = replace(template, arguments_as_text=True)
        as_text = or_nothing(template.render, calls) is None and or_nothing(takes_text.render, calls)
        template = replace(takes_text if as_text else template, tools=())
        if end.of_last:
            return template
        told = Message("tool", "Told", more={"name": "f", "tool_call_id": call["id"]})
        called, answered = (or_nothing(template.render, said) or "" for said in (calls, [*calls, told]))
        return replace(template, end=end.found_of_call(called, answered))

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about the template, a sentence each."""
        dated = "the chat template prints the date of the day: rows prepared on another day differ"
        return (*self.end.notes, *([dated] if "strftime_now" in self.text else []))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of `messages`.

        Raises:
            DataError: The template fails; the message is the template's own.
        """
        return self._print(self._plain(messages), self.tools)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of `messages` up to where the assistant's next content begins, as `apply_chat_template` gives it.

        A template that does not know `add_generation_prompt` may print the header of an answer only together with the
        answer: it is then taken from there, without spaces at its end, which belong to the answer.

        Raises:
            DataError: The template fails.
        """
        return self._print_prompt(self._plain(messages), self.tools)

    def said(self, text: str, ids: Sequence[int] = ()) -> str:
        """What an answer says, without what the template prints before that: a thought, or the name of a channel.

        Args:
            text: The answer as it is shown, without special tokens.
            ids: Its tokens, where special ones may tell what is said.
        """
        if not self._opener:
            return text
        if self._opener in text:
            return text.rpartition(self._opener)[2].lstrip()  # the last, where templates cut too: it may open a thought
        before, found, _ = str(self.tokenizer.decode(list(ids))).rpartition(self._opener)
        if not found:
            return text
        shown: Any = self.tokenizer(before + found, add_special_tokens=False)["input_ids"]
        return text.removeprefix(str(self.tokenizer.decode(shown, skip_special_tokens=True))).lstrip()

    def remembered(self, text: str, ids: Sequence[int]) -> str:
        """What a conversation goes on with of an answer: its text, of which the template itself leaves thoughts out.

        Where special tokens, which are not in the text, tell what is said, it is that alone.
        """
        return text if self._opener in text else self.said(text, ids)

    @cached_property
    def _opener(self) -> str:
        """The markup that a template prints before what an answer says, whether something was thought before or not."""
        mark, thought = unused_characters(self.text, 2)
        asked = [Message("user", "Question")]
        prompt, before = or_nothing(self.prompt, asked) or "", []
        for more in ({}, *({key: thought} for key in THOUGHTS)):
            text = or_nothing(self.render, [*asked, Message("assistant", mark, more=more)]) or ""
            if mark in text:
                before.append(text[shared_beginning(prompt, text) : text.index(mark)])
        backwards = min((each[::-1] for each in before), default="", key=len)
        shared = min((shared_beginning(backwards, each[::-1]) for each in before), default=0)
        opener = backwards[:shared][::-1].strip()
        tags = [*THINKING.finditer(opener)]
        markup = tags[-1] if tags else self.end.tokens.search(opener)
        closing = "</think>" if "</think>" in self.text else ""  # what it cuts off there, it does not print
        return opener[markup.start() :] if markup else closing

    def _print(self, messages: Plain, tools: Plain) -> str:
        return self._printed(messages, tools)[0]

    def _printed(self, messages: Plain, tools: Plain, **options: bool) -> tuple[str, list[Span]]:
        special = self.tokenizer.special_tokens_map
        if self.contents_as_parts:
            messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        try:
            return render_bounded(messages, self.text, tools=tools, special_tokens=special, **options)
        except TemplateBoundError as error:
            message, remedy = f"the chat template of {self.origin} cannot be used: {error}", "name another template"
            raise DataError(message, key=KEY, remedy=remedy) from None
        except Exception as error:  # a template is a program of somebody else's: anything can come out of it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
            message = f"the chat template cannot render it: {reason}{line}"
            raise DataError(message, key=KEY, remedy="change the row, or name another template") from None

    def _print_prompt(self, messages: Plain, tools: Plain) -> str:
        if "add_generation_prompt" in self.text:
            return self._printed(messages, tools, add_generation_prompt=True)[0]
        alone = self._print(messages, tools)
        (mark,) = unused_characters(alone)
        answered = self._print([*messages, {"role": "assistant", "content": f"{mark}."}], tools)
        header = answered.partition(mark)[0].rstrip(" ")
        return header if header.startswith(alone) else alone

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        plain: list[dict[str, Any]] = [{"role": m.role, "content": m.content, **m.more} for m in messages]
        for message in (message for message in plain if "tool_calls" in message):
            calls, as_text = message["tool_calls"], self.arguments_as_text
            message["tool_calls"] = [with_arguments(call, as_text=as_text) for call in calls]
        return plain


def or_nothing(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str | None:
    """What is rendered; None where the template refuses it."""
    try:
        return render(messages)
    except DataError:
        return None
