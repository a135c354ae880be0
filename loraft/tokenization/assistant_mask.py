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

from loraft.errors import DataError
from loraft.figures import shared_beginning
from loraft.rows.formats import Message
from loraft.tokenization.content_marks import (
    APART,
    THINKS,
    Render,
    find_parts,
    inside_thought,
    left_out,
    thought_twice,
    unused_characters,
)
from loraft.tokenization.long_texts import Span
from loraft.tokenization.printed_turns import PrintedTurns
from loraft.tokenization.template_printer import KEY, TemplatePrinter, or_nothing

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

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


class ChatTemplate(TemplatePrinter):
    """A chat template in the hands of a tokenizer, and where the turns of the assistant stand in what it prints."""

    def asked(self, messages: Sequence[Message]) -> tuple[str, tuple[int, ...]]:
        """The prompt that an answer to `messages` follows, and where the prompts of the answers in it end.

        What was thought before may be left out of it.

        Raises:
            DataError: The template fails, or leaves out what is said.
        """
        printed = self._found(messages, self._print_prompt)
        heeded = {part: found for part, found in printed.places.items() if part.kind not in (*THINKS, "name")}
        left_out(messages, heeded, "name a template that prints it, or say it in the user's turn")
        starts = self._prompt_ends(printed)

        def says_from(turn: int) -> int | None:
            with suppress(DataError):
                return self._says_from(printed, turn, self.prompt)
            return None

        starts |= printed.find([turn for turn, start in starts.items() if start is None], says_from)
        return printed.text, tuple(sorted(start for start in starts.values() if start))

    def turns(self, messages: Sequence[Message], wanted: Sequence[int], *, heed_marks: bool = True) -> RenderedTurns:
        """The text of `messages`, and where in it those with the indices `wanted` are said, ends of turn included.

        A template's `{% generation %}` marks tell it where they are heeded, of the assistant's messages alone.

        Raises:
            DataError: The template fails, hides where a content ends, or leaves out what is said.
        """
        printed = self._whole(messages)
        text, places = printed.text, printed.places
        findings = left_out(messages, places, f"{APART}; or name another template") + thought_twice(text, places)
        starts = self._prompt_ends(printed)
        spans = self._spans(printed, wanted, starts, heed_marks=heed_marks)
        if heed_marks and not self._has_marks:
            said = [own[-1][1] for turn, own in spans.items() if "tool_calls" not in messages[turn].more]
            findings += self.end.findings(text, said)
        others = [turn for turn in wanted if turn in starts and starts[turn] is None]
        for turn in (turn for alike in printed.kinds(others) for turn in dict.fromkeys((alike[0], alike[-1]))):
            findings += self._other_prompt(messages[:turn], text, spans[turn][0][0])
        answers = {turn: own for turn, own in spans.items() if messages[turn].role == "assistant"}
        findings += inside_thought(text, [own[0] for own in answers.values()])
        begins = {turn: own[0][0] for turn, own in answers.items()}
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
        printed = self._whole(messages)
        own = {part: found for part, found in printed.places.items() if part.turn == last}
        findings = left_out(messages, own, "name another template, or leave such rows out")
        findings += thought_twice(printed.text, own)
        start = self._prompt_end(printed, last)
        (said,) = self._spans(printed, [last], {last: start}).values()
        begins = start or said[0][0]
        moved = len(prompt) - begins
        spans = tuple((start + moved, stop + moved) for start, stop in said)
        text = prompt + printed.text[begins:]
        findings += inside_thought(text, spans[:1])
        return RenderedTurns(text, spans, (*borders, len(prompt)), tuple(findings))

    @property
    def _has_marks(self) -> bool:
        return MARKS.search(self.text) is not None

    def _found(self, messages: Sequence[Message], render: Render) -> PrintedTurns:
        """What is printed of `messages`, and where in it what they say ends."""
        text, places = find_parts(self._plain(messages), self.tools, render)
        return PrintedTurns(messages, self.text, text, places)

    def _whole(self, messages: Sequence[Message]) -> PrintedTurns:
        """A conversation as it is learned: the last answer ends as those do that more follows."""
        printed, last = self._found(messages, self._print), messages[-1]
        closing = self.end.closing(calls="tool_calls" in last.more) if last.role == "assistant" else ""
        return replace(printed, text=printed.text + closing)

    def _prompt_ends(self, printed: PrintedTurns) -> dict[int, int | None]:
        """Where the prompt of each assistant's turn ends; None where it is no beginning of what is printed.

        An answer behind another one has none where the template does not ask for it.
        """
        turns = (turn for turn, message in enumerate(printed.messages) if turn and message.role == "assistant")
        ends = printed.find(turns, lambda turn: self._prompt_end(printed, turn))
        return {turn: end for turn, end in ends.items() if end != 0}

    def _prompt_end(self, printed: PrintedTurns, turn: int) -> int | None:
        """As `_prompt_ends` of one turn, and 0 where the template does not ask for it."""
        before = printed.messages[:turn]
        prompt = or_nothing(self.prompt, before)
        if before[-1].role == "assistant" and prompt == or_nothing(self.render, before):
            return 0
        return len(prompt) if prompt is not None and printed.text.startswith(prompt) else None

    def _spans(
        self, printed: PrintedTurns, wanted: Sequence[int], starts: Starts, *, heed_marks: bool = True
    ) -> dict[int, list[Span]]:
        """Where the messages `wanted` are said, ends of turn included."""
        if heed_marks and self._has_marks:
            return self._marked(printed, wanted)
        without = [turn for turn in wanted if not starts.get(turn)]
        starts = {**starts, **printed.find(without, lambda turn: self._says_from(printed, turn, self.render))}
        spans = {}
        for turn in wanted:
            start, stop = starts[turn] or 0, self._end(printed, turn)
            if start >= stop or any(of != turn for _, of in printed.ends_in(start, stop)):
                raise _not_found()  # what another one says depends on it, or stands inside it
            spans[turn] = [(start, stop)]
        return spans

    def _says_from(self, printed: PrintedTurns, turn: int, render: Callable[[Sequence[Message]], str]) -> int:
        """The first character that depends on what is said at `turn`.

        Tokenizers join spaces to the word that follows, so those before it belong to it.
        """
        messages, text = printed.messages, printed.text
        (mark,) = unused_characters(text)
        calls: Any = messages[turn].more.get("tool_calls", ())
        others = [{**call, "function": {"name": mark, "arguments": {}}} for call in calls]
        for more in ({}, {"tool_calls": others}):  # some refuse what a tool says where nothing calls it
            said = Message(messages[turn].role, mark, more=more)
            other = or_nothing(render, [*messages[:turn], said, *messages[turn + 1 :]])
            if other is not None:
                return self.end.token_start(text, len(text[: shared_beginning(text, other)].rstrip(" ")))
        raise _not_found()

    def _end(self, printed: PrintedTurns, turn: int) -> int:
        """The end of a turn: behind its last part and the end-of-turn token that follows."""
        messages, text, parts = printed.messages, printed.text, printed.own[turn]
        if "tool_calls" not in messages[turn].more:
            contents = [part for part in parts if part.path == ("content",)]
            found = parts[max(contents, key=lambda part: part.end)] if contents else ()
            if len(found) != 1:
                raise _not_found()
            return self.end.behind(text, found[0])
        before = max((found[0] for found in printed.own[turn - 1].values() if found), default=0)
        behind = {part: [place for place in found if place > before] for part, found in parts.items()}
        own = {part: found[0] for part, found in behind.items() if found}
        stop = self.end.stop_token_of_call or self.end.stop_token
        if own and stop is not None:  # before what is said later begins, which may hold that token as text
            end = text.find(stop, max(own.values()), max(0, printed.said_behind(turn)))
            if end >= 0:
                return end + len(stop)
        # It ends as it does where nothing follows, behind the last part that stands in both.
        alone, ends = find_parts(self._plain(messages[: turn + 1]), self.tools, self._print, turn)
        at, rest = max(((own[part], alone[ends[part][0] :]) for part in own if ends.get(part)), default=(0, alone))
        if not text.startswith(rest.rstrip(), at):
            raise _not_found()
        return self.end.behind(text, at + len(rest.rstrip()))

    def _other_prompt(self, asked: Sequence[Message], text: str, start: int) -> list[str]:
        prompt = or_nothing(self.prompt, asked)
        if prompt is None:
            return []
        common = self.end.token_start(prompt, shared_beginning(prompt, text))
        if common >= start:  # all that rows differ in stands before it
            return [f"generation feeds {prompt[common:]!r} before the answer, and the row has it not: {APART}"]
        return [f"generation feeds another prompt than the row begins with: {APART}"]

    def _marked(self, printed: PrintedTurns, wanted: Sequence[int]) -> dict[int, list[Span]]:
        """The spans that the template itself marks, each turn's drawn to the end of its end-of-turn token.

        A span is of the turn that what is said last before its end is of, or of the next one, where that is another's.
        """
        messages = printed.messages
        _, marked = self._printed(self._plain(messages), self.tools, return_assistant_tokens_mask=True)
        answers = {turn for turn, message in enumerate(messages) if message.role == "assistant"}
        spans: dict[int, list[Span]] = {}
        for start, stop in (span for span in marked if span[0] < span[1]):
            if others := [of for _, of in printed.ends_in(start, stop) if of not in answers]:
                message = f"the chat template marks what the {messages[others[0]].role} says with {{% generation %}}"
                raise DataError(message, key=KEY, remedy="mark the assistant's turns alone")
            before, later = printed.around(stop, answers)
            if (turn := before if before in answers else later) is not None:
                spans.setdefault(turn, []).append((start, stop))
        if missing := [turn for turn in wanted if turn not in spans]:
            message = f"the chat template marks nothing of messages[{missing[0]}] with {{% generation %}}"
            raise DataError(message, key=KEY, remedy="mark each of the assistant's turns")
        for own in spans.values():
            start, stop = own[-1]
            own[-1] = (start, self._marked_end(printed.text, start, stop))
        return {turn: spans[turn] for turn in wanted}

    def _marked_end(self, text: str, start: int, stop: int) -> int:
        """`stop` without white space behind an end-of-turn token, or with the token where it stands behind the mark."""
        inside = text[start:stop].rstrip()
        if self.end.text is not None and inside.endswith(self.end.text):
            return start + len(inside)
        return self.end.behind(text, stop)


def _not_found() -> DataError:
    message = "the chat template changes, moves or leaves out what is said, so the answers cannot be found in the text"
    remedy = "mark them in the template with {% generation %} and {% endgeneration %}, or name another one"
    return DataError(message, key=KEY, remedy=remedy)
