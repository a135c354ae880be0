"""Where the assistant's turns stand in the text that a chat template prints, of which nothing is assumed.

A turn begins where the rendering of the messages before it, with the generation prompt, ends: what is trained is what
follows the prompt at inference. Where that rendering is no beginning of the whole (a template that moves the system
prompt into the last question, say), it begins with the first character that depends on what it says. It ends behind
the last of its parts (`content_marks`) and what ends it there (`turn_end`). `{% generation %}` marks are believed.
What a conversation says and its rendering does not hold is refused, or is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from loraft.errors import DataError
from loraft.figures import shared_beginning
from loraft.rows.formats import Message, Tools
from loraft.rows.turns import with_arguments
from loraft.tokenization.content_marks import (
    APART,
    THINKS,
    Places,
    find_parts,
    left_out,
    thought_twice,
    unused_characters,
)
from loraft.tokenization.long_texts import Span
from loraft.tokenization.template_budget import TemplateBoundError
from loraft.tokenization.template_sandbox import Plain, render_bounded
from loraft.tokenization.turn_end import TurnEnd

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
KEY = "data.chat_template"
FUNCTION = {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}}

Starts = Mapping[int, int | None]


@dataclass(frozen=True)
class RenderedTurns:
    """A conversation as a template prints it.

    Attributes:
        spans: Where in the text the turns that were asked for are said, ends of turn included.
        borders: Where the prompts of the assistant's turns end.
        findings: What a person should know of it, each with what can be done.
    """

    text: str
    spans: tuple[Span, ...]
    borders: tuple[int, ...]
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in the hands of a tokenizer.

    Attributes:
        tokenizer: It brings the special tokens that the template may print.
        end: What the template prints after the assistant's content.
        tools: The tools of the conversation at hand.
        arguments_as_text: The template prints the arguments of a call as text that it is given; most take an object.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    end: TurnEnd
    origin: str = "the tokenizer"
    tools: Tools = ()
    arguments_as_text: bool = False

    @classmethod
    def probed(cls, tokenizer: PreTrainedTokenizerBase, text: str, origin: str = "the tokenizer") -> ChatTemplate:
        """The template; how it ends turns, and takes arguments, found by rendering a few messages.

        Raises:
            DataError: The template cannot render that conversation.
        """
        template = cls(tokenizer, text, TurnEnd.unknown(tokenizer), origin)
        (mark,) = unused_characters(text)
        asked = Message("user", "Question")
        turns = [asked, Message("assistant", f"Answer{mark}")]
        with_tools = replace(template, tools=({"type": "function", "function": FUNCTION},))
        if _or_nothing(template.render, turns) is None and _or_nothing(with_tools.render, turns):
            template = with_tools  # it prints no conversation without
        last, earlier = template.render(turns), _or_nothing(template.render, [*turns, asked]) or ""
        end = template.end.found(last.partition(mark)[2], earlier.partition(mark)[2], tokenizer.eos_token)
        template = replace(template, end=end)
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}
        calls = [asked, Message("assistant", "", more={"tool_calls": [call]})]
        takes_text = replace(template, arguments_as_text=True)
        as_text = _or_nothing(template.render, calls) is None and _or_nothing(takes_text.render, calls)
        return replace(takes_text if as_text else template, tools=())

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

    def asked(self, messages: Sequence[Message]) -> tuple[str, tuple[int, ...]]:
        """The prompt that an answer to `messages` follows, and where the prompts of the answers in it end.

        What was thought before may be left out of it.

        Raises:
            DataError: The template fails, or leaves out what is said.
        """
        text, places = find_parts(self._plain(messages), self.tools, self._print_prompt)
        heeded = {part: found for part, found in places.items() if part.kind not in (*THINKS, "name")}
        left_out(messages, heeded, "name a template that prints it, or say it in the user's turn")
        starts = self._prompt_ends(messages, text)
        for turn in (turn for turn, start in starts.items() if start is None):
            with suppress(DataError):
                starts[turn] = self._says_from(messages, turn, text, self.prompt)
        return text, tuple(start for start in starts.values() if start)

    def turns(self, messages: Sequence[Message], wanted: Sequence[int], *, heed_marks: bool = True) -> RenderedTurns:
        """The text of `messages`, and where in it those with the indices `wanted` are said, ends of turn included.

        A template's `{% generation %}` marks tell it where they are heeded, of the assistant's messages alone.

        Raises:
            DataError: The template fails, hides where a content ends, or leaves out what is said.
        """
        text, places = find_parts(self._plain(messages), self.tools, self._print)
        findings = left_out(messages, places, f"{APART}; or name another template") + thought_twice(text, places)
        starts = self._prompt_ends(messages, text)
        if heed_marks and MARKS.search(self.text):
            spans = self._marked(messages, wanted, places)
        else:
            spans = self._spans(messages, wanted, text, places, starts)
            said = [own[-1][1] for turn, own in spans.items() if "tool_calls" not in messages[turn].more]
            findings += self.end.findings(text, said) if heed_marks else []
        for turn in (turn for turn in wanted if turn in starts and starts[turn] is None):
            findings += self._other_prompt(messages[:turn], text, spans[turn][0][0])
        begins = {turn: own[0][0] for turn, own in spans.items() if messages[turn].role == "assistant"}
        borders = {**begins, **{turn: start for turn, start in starts.items() if start is not None}}
        order = sorted({border for border in borders.values() if border})
        return RenderedTurns(text, tuple(chain(*spans.values())), tuple(order), tuple(dict.fromkeys(findings)))

    def answer(self, messages: Sequence[Message]) -> RenderedTurns:
        """The last message behind the prompt that generation feeds, whatever the template prints of both together.

        Raises:
            DataError: As `turns`.
        """
        last = len(messages) - 1
        if last == 0:  # nothing is asked
            return self.turns(messages, [0])
        prompt, borders = self.asked(messages[:-1])
        text, places = find_parts(self._plain(messages), self.tools, self._print)
        own = {part: found for part, found in places.items() if part.turn == last}
        findings = left_out(messages, own, "name another template, or leave such rows out") + thought_twice(text, own)
        starts = self._prompt_ends(messages, text)
        if MARKS.search(self.text):
            (said,) = self._marked(messages, [last], places).values()
        else:
            (said,) = self._spans(messages, [last], text, places, starts).values()
        begins = starts.get(last)
        begins = said[0][0] if begins is None else begins
        moved = len(prompt) - begins
        spans = tuple((start + moved, stop + moved) for start, stop in said)
        return RenderedTurns(prompt + text[begins:], spans, (*borders, len(prompt)), tuple(findings))

    def _print(self, messages: Plain, tools: Plain) -> str:
        return self._printed(messages, tools)[0]

    def _printed(self, messages: Plain, tools: Plain, **options: bool) -> tuple[str, list[Span]]:
        special = self.tokenizer.special_tokens_map
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

    def _prompt_ends(self, messages: Sequence[Message], text: str) -> dict[int, int | None]:
        """Where the prompt of each assistant's turn ends in `text`; None where it is no beginning of it.

        An answer behind another one has none where the template does not ask for it.
        """
        ends: dict[int, int | None] = {}
        for turn in (turn for turn, message in enumerate(messages) if turn and message.role == "assistant"):
            before = messages[:turn]
            prompt = _or_nothing(self.prompt, before)
            if before[-1].role == "assistant" and prompt == _or_nothing(self.render, before):
                continue
            ends[turn] = len(prompt) if prompt is not None and text.startswith(prompt) else None
        return ends

    def _spans(
        self, messages: Sequence[Message], wanted: Sequence[int], text: str, places: Places, starts: Starts
    ) -> dict[int, list[Span]]:
        """Where in `text` the messages `wanted` are said, ends of turn included."""
        spans = {}
        for turn in wanted:
            start = starts.get(turn)
            start = self._says_from(messages, turn, text, self.render) if start is None else start
            stop = self._end(messages, turn, text, places)
            others = (place for part, found in places.items() if part.turn != turn for place in found)
            if start >= stop or any(start < place <= stop for place in others):
                raise _not_found()  # what another one says depends on it, or stands inside it
            spans[turn] = [(start, stop)]
        return spans

    def _says_from(
        self, messages: Sequence[Message], turn: int, text: str, render: Callable[[Sequence[Message]], str]
    ) -> int:
        """The first character of `text` that depends on what is said at `turn`.

        Tokenizers join spaces to the word that follows, so those before it belong to it.
        """
        (mark,) = unused_characters(text)
        calls: Any = messages[turn].more.get("tool_calls", ())
        others = [{**call, "function": {"name": mark, "arguments": {}}} for call in calls]
        for more in ({}, {"tool_calls": others}):  # some refuse what a tool says where nothing calls it
            said = Message(messages[turn].role, mark, more=more)
            other = _or_nothing(render, [*messages[:turn], said, *messages[turn + 1 :]])
            if other is not None:
                return self.end.token_start(text, len(text[: shared_beginning(text, other)].rstrip(" ")))
        raise _not_found()

    def _end(self, messages: Sequence[Message], turn: int, text: str, places: Places) -> int:
        """The end of a turn in `text`: behind its last part and the end-of-turn token that follows."""
        if "tool_calls" not in messages[turn].more:
            contents = [part for part in places if part.turn == turn and part.path == ("content",)]
            found = places[max(contents, key=lambda part: part.end)] if contents else ()
            if len(found) != 1:
                raise _not_found()
            return self.end.behind(text, found[0])
        before = max((found[0] for part, found in places.items() if part.turn == turn - 1 and found), default=0)
        behind = {part: [place for place in found if place > before] for part, found in places.items()}
        own = {part: found[0] for part, found in behind.items() if part.turn == turn and found}
        later = [place - part.end for part, found in places.items() if (part.turn or 0) > turn for place in found]
        stop = self.end.stop_token
        if own and stop is not None:  # before what is said later begins, which may hold that token as text
            end = text.find(stop, max(own.values()), max(0, min(later, default=len(text))))
            if end >= 0:
                return end + len(stop)
        # It ends as it does where nothing follows, behind the last part that stands in both.
        alone, ends = find_parts(self._plain(messages[: turn + 1]), self.tools, self._print, turn)
        at, rest = max(((own[part], alone[ends[part][0] :]) for part in own if ends.get(part)), default=(0, alone))
        if not text.startswith(rest.rstrip(), at):
            raise _not_found()
        return at + len(rest.rstrip())

    def _other_prompt(self, asked: Sequence[Message], text: str, start: int) -> list[str]:
        prompt = _or_nothing(self.prompt, asked)
        if prompt is None:
            return []
        common = self.end.token_start(prompt, shared_beginning(prompt, text))
        if common >= start:  # all that rows differ in stands before it
            return [f"generation feeds {prompt[common:]!r} before the answer, and the row has it not: {APART}"]
        return [f"generation feeds another prompt than the row begins with: {APART}"]

    def _marked(self, messages: Sequence[Message], wanted: Sequence[int], places: Places) -> dict[int, list[Span]]:
        """The spans that the template itself marks, each turn's drawn to the end of its end-of-turn token.

        A span is of the turn that what is said last before its end is of, or of the next one, where that is another's.
        """
        text, marked = self._printed(self._plain(messages), self.tools, return_assistant_tokens_mask=True)
        said = sorted((place, part.turn or 0) for part, found in places.items() for place in found)
        spans: dict[int, list[Span]] = {}
        for start, stop in (span for span in marked if span[0] < span[1]):
            if others := [of for place, of in said if start < place <= stop and messages[of].role != "assistant"]:
                message = f"the chat template marks what the {messages[others[0]].role} says with {{% generation %}}"
                raise DataError(message, key=KEY, remedy="mark the assistant's turns alone")
            before = [of for place, of in said if place <= stop][-1:]
            later = [of for place, of in said if place > stop and messages[of].role == "assistant"][:1]
            for turn in before if before and messages[before[0]].role == "assistant" else later:
                spans.setdefault(turn, []).append((start, stop))
        if missing := [turn for turn in wanted if turn not in spans]:
            message = f"the chat template marks nothing of messages[{missing[0]}] with {{% generation %}}"
            raise DataError(message, key=KEY, remedy="mark each of the assistant's turns")
        for own in spans.values():
            start, stop = own[-1]
            own[-1] = (start, self._marked_end(text, start, stop))
        return {turn: spans[turn] for turn in wanted}

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        plain: list[dict[str, Any]] = [{"role": m.role, "content": m.content, **m.more} for m in messages]
        for message in (message for message in plain if "tool_calls" in message):
            calls, as_text = message["tool_calls"], self.arguments_as_text
            message["tool_calls"] = [with_arguments(call, as_text=as_text) for call in calls]
        return plain

    def _marked_end(self, text: str, start: int, stop: int) -> int:
        """`stop` without white space behind an end-of-turn token, or with the token where it stands behind the mark."""
        inside = text[start:stop].rstrip()
        if self.end.text is not None and inside.endswith(self.end.text):
            return start + len(inside)
        return self.end.behind(text, stop)


def _or_nothing(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str | None:
    """What is rendered; None where the template refuses it."""
    try:
        return render(messages)
    except DataError:
        return None


def _not_found() -> DataError:
    message = "the chat template changes, moves or leaves out what is said, so the answers cannot be found in the text"
    remedy = "mark them in the template with {% generation %} and {% endgeneration %}, or name another one"
    return DataError(message, key=KEY, remedy=remedy)
