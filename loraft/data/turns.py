"""Where the assistant's turns stand in the text that a chat template prints.

This module knows characters: it renders a conversation and finds in the rendering what the assistant says, from
the place where the prompt of a generation would end to the end of the end-of-turn token. It refuses to know tokens.

A template is a program, so nothing is assumed about how it prints. A turn begins where the rendering of the messages
before it, with the generation prompt, ends: by construction what is trained is what follows the prompt at
inference. Where that rendering is no beginning of the whole (a template that moves the system prompt into the last
question, say), a turn begins with its content. The end of a content is found by rendering again with one private
character behind it; without that character the rendering must be the same, or the template is refused.
A template with `{% generation %}` marks says itself what the assistant says, and is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from loraft.data.formats import THOUGHTS, Message
from loraft.data.template_sandbox import TemplateBoundError, render_bounded
from loraft.errors import DataError

__all__ = ["ChatTemplate", "Span"]

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
PRIVATE = range(0xE000, 0xF900)
"""Unicode's private use area: characters that mean nothing, of which one that a row does not use marks a place."""

Span = tuple[int, int]
"""Characters `start … stop - 1` of a text."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in the hands of a tokenizer.

    Attributes:
        tokenizer: It brings the special tokens that the template may print.
        text: The template.
        origin: Where it comes from, in a few words.
        end_of_turn: The token that the template prints after the assistant's last content; None where it prints none.
        tools: The tools of the conversation at hand, as JSON schemas.
        arguments_as_text: The template prints the arguments of a call as text that it is given; most take an object.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    origin: str = "the tokenizer"
    end_of_turn: str | None = None
    tools: tuple[Mapping[str, object], ...] = ()
    arguments_as_text: bool = False

    @classmethod
    def probed(cls, tokenizer: PreTrainedTokenizerBase, text: str, origin: str = "the tokenizer") -> ChatTemplate:
        """The template; its end of turn, and how it takes arguments, found by rendering a few messages.

        Raises:
            DataError: The template cannot render that conversation.
        """
        template = cls(tokenizer, text, origin)
        mark = chr(PRIVATE[0])
        asked, answered = Message("user", "Question"), Message("assistant", f"Answer{mark}")
        after = template.render([asked, answered]).rpartition(mark)[2]
        tokens = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        longest_first = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
        found = re.match(rf"\s*({'|'.join(map(re.escape, longest_first))})", after) if longest_first else None
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}
        calls = [asked, Message("assistant", "", more={"tool_calls": [call]})]
        takes_text = replace(template, arguments_as_text=True)
        as_text = _or_nothing(lambda: template.render(calls)) is None and _or_nothing(lambda: takes_text.render(calls))
        return replace(template, end_of_turn=found[1] if found else None, arguments_as_text=bool(as_text))

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about the template, a sentence each."""
        notes = []
        if self.end_of_turn is None:
            notes.append("the chat template prints no token after an answer: the model does not learn to stop")
        if "strftime_now" in self.text:
            notes.append("the chat template prints the date of the day: rows prepared on another day differ")
        return tuple(notes)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of `messages`.

        Raises:
            DataError: The template fails; the message is the template's own.
        """
        return self._rendered(messages, generation_prompt=generation_prompt)[0]

    def _rendered(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        """The text of `messages`, and the spans that the template marks, where they are wanted."""
        try:
            return render_bounded(
                self._plain(messages), self.text, tools=self.tools, special_tokens=self.tokenizer.special_tokens_map,
                generation_prompt=generation_prompt, marks=marks,
            )  # fmt: skip
        except TemplateBoundError as error:
            message, remedy = f"the chat template of {self.origin} cannot be used: {error}", "name another template"
            raise DataError(message, key="data.chat_template", remedy=remedy) from None
        except Exception as error:  # a template is a program of somebody else's: anything can come out of it
            raise _failure(error) from None

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of `messages` up to where the assistant's next content begins.

        A template that knows no `add_generation_prompt` prints the header of an answer only together with the
        answer: the header is then taken from there, without spaces at its end, which tokenizers join to the answer.
        """
        if "add_generation_prompt" in self.text:
            return self.render(messages, generation_prompt=True)
        alone = self.render(messages)
        mark = _unused(alone)
        header = self.render([*messages, Message("assistant", f"{mark}.")]).partition(mark)[0]
        return alone if header.rstrip() == alone.rstrip() else header.rstrip(" ")

    def turns(
        self, messages: Sequence[Message], wanted: Sequence[int], *, heed_marks: bool = True
    ) -> tuple[str, tuple[Span, ...]]:
        """The text of `messages`, and where in it the messages `wanted` are said, ends of turn included.

        Args:
            messages: The conversation.
            wanted: Indices of messages, in order; the assistant's only where marks are heeded.
            heed_marks: Take the spans from the template's `{% generation %}` marks where it has them.

        Raises:
            DataError: The template fails, hides where a content ends, or leaves out what is said of tools or thought.
        """
        if self.tools or any(message.role == "tool" or message.more for message in messages):
            self._require_thoughts(messages)
            self._require_tools(messages)
        if heed_marks and MARKS.search(self.text):
            return self._marked(messages, wanted)
        text = self.render(messages)
        said = [turn for turn in wanted if "tool_calls" not in messages[turn].more]
        content_ends = dict(zip(said, self._contents(messages, said, text, after=True), strict=True))
        ends = [content_ends[t] if t in content_ends else self._call_end(messages, t, text) for t in wanted]
        starts = [self._prompt_end(messages, turn, text) for turn in wanted]
        if None in starts:
            contents = self._contents(messages, wanted, text, after=False)
            # Tokenizers join spaces to the word that follows, so those before a content belong to it.
            contents = [len(text[:content].rstrip(" ")) for content in contents]
            starts = [content if start is None else start for start, content in zip(starts, contents, strict=True)]
        return text, tuple((start or 0, self._turn_end(text, end)) for start, end in zip(starts, ends, strict=True))

    def _require_thoughts(self, messages: Sequence[Message]) -> None:
        """Refuse what was thought where the template never prints it; one that prints it decides of which turns."""
        for thought in THOUGHTS:
            if any(thought in message.more for message in messages) and not re.search(rf"\b{thought}\b", self.text):
                raise DataError(
                    f"the chat template prints no {thought}, and the row has it",
                    key="data.chat_template",
                    remedy="name a template that prints it, or leave it out of the rows",
                )

    def _require_tools(self, messages: Sequence[Message]) -> None:
        """Refuse a conversation with tools where the template would leave them out without a word."""
        text = self.render(messages)
        unsaid = [replace(m, content="", more={}) if m.role == "tool" else m for m in messages]
        uncalled = [replace(m, more={key: m.more[key] for key in m.more if key != "tool_calls"}) for m in messages]
        for what, there, without in (
            ("messages of tools", unsaid != list(messages), lambda: self.render(unsaid)),
            ("calls of tools", uncalled != list(messages), lambda: self.render(uncalled)),
            ("tools", bool(self.tools), lambda: replace(self, tools=()).render(messages)),
        ):
            if there and _or_nothing(without) == text:
                raise DataError(
                    f"the chat template prints no {what}, and the row has them",
                    key="data.chat_template",
                    remedy="name a template that prints them, or leave such rows out",
                )

    def _call_end(self, messages: Sequence[Message], turn: int, text: str) -> int:
        """The end in `text` of a turn that calls tools, which the template prints behind its content."""
        until = self.render(messages[: turn + 1]).rstrip()
        if not text.startswith(until):
            raise DataError(
                "the chat template prints a call of tools otherwise where the conversation goes on",
                key="data.chat_template",
                remedy="mark the answers in the template with {% generation %} and {% endgeneration %}",
            )
        return len(until)

    def _prompt_end(self, messages: Sequence[Message], turn: int, text: str) -> int | None:
        """Where the prompt of `turn` ends in `text`; None where its rendering is no beginning of `text`."""
        if turn == 0:
            return None
        try:
            prompt = self.prompt(messages[:turn])
        except DataError:
            return None  # a template may refuse a conversation that ends there
        return len(prompt) if text.startswith(prompt) else None

    def _contents(self, messages: Sequence[Message], turns: Sequence[int], text: str, *, after: bool) -> list[int]:
        """Where the contents of `turns` begin in `text`, or end (`after`), white space around them left out."""
        if not turns:
            return []
        mark = _unused(text)
        marked = list(messages)
        for turn in turns:
            content = messages[turn].content
            place = len(content.rstrip()) if after else len(content) - len(content.lstrip())
            marked[turn] = replace(messages[turn], content=content[:place] + mark + content[place:])
        rendered = self.render(marked)
        if rendered.count(mark) != len(turns) or rendered.replace(mark, "") != text:
            raise DataError(
                "the chat template changes or leaves out what is said, so the answers cannot be found in the text",
                key="data.chat_template",
                remedy="mark them in the template with {% generation %} and {% endgeneration %}, or name another one",
            )
        places = [found.start() for found in re.finditer(mark, rendered)]
        return [place - before for before, place in enumerate(places)]

    def _turn_end(self, text: str, content_end: int) -> int:
        """The end of the end-of-turn token behind `content_end`, or `content_end` where there is none."""
        if self.end_of_turn is None:
            return content_end
        found = re.compile(rf"\s*{re.escape(self.end_of_turn)}").match(text, content_end)
        return found.end() if found else content_end

    def _marked(self, messages: Sequence[Message], wanted: Sequence[int]) -> tuple[str, tuple[Span, ...]]:
        """The spans that the template itself marks, each drawn to the end of its end-of-turn token."""
        text, spans = self._rendered(messages, marks=True)
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if len(spans) != len(answers):
            raise DataError(
                f"the chat template marks {len(spans)} spans with {{% generation %}} for {len(answers)} answers",
                key="data.chat_template",
                remedy="mark each of the assistant's turns once",
            )
        chosen = [span for index, span in zip(answers, spans, strict=True) if index in wanted]
        return text, tuple((start, self._marked_end(text, start, stop)) for start, stop in chosen)

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        plain: list[dict[str, Any]] = [{"role": m.role, "content": m.content, **m.more} for m in messages]
        for message in plain:
            if "tool_calls" in message:
                as_text = self.arguments_as_text
                message["tool_calls"] = [_with_arguments(call, as_text=as_text) for call in message["tool_calls"]]
        return plain

    def _marked_end(self, text: str, start: int, stop: int) -> int:
        """`stop` without white space behind an end-of-turn token, or with the token where it stands behind the mark."""
        inside = text[start:stop].rstrip()
        if self.end_of_turn is not None and inside.endswith(self.end_of_turn):
            return start + len(inside)
        return self._turn_end(text, stop)


def _with_arguments(call: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
    """A call of a tool with its arguments as text or as an object, whichever of both they are in the row."""
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    arguments: Any = function["arguments"]
    if as_text and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        with suppress(ValueError):  # text that is no JSON stays what it is
            read = json.loads(arguments)
            arguments = read if isinstance(read, Mapping) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _or_nothing(render: Callable[[], str]) -> str | None:
    """What is rendered; None where the template refuses it."""
    try:
        return render()
    except DataError:
        return None


def _unused(text: str) -> str:
    return next(chr(code) for code in PRIVATE if chr(code) not in text)


def _failure(error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
    return DataError(
        f"the chat template cannot render it: {reason}{line}",
        key="data.chat_template",
        remedy="change the row, or name another template",
    )
