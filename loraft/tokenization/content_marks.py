"""Which of what a conversation says stands in its rendering, and where; and control tokens that a person wrote.

A template may move, change or leave out anything that it is given. So each part of a conversation gets a mark of its
own, a character that the text does not have, and is rendered again: a part whose mark is missing was left out. Without
the marks that rendering must be the text, or they made a difference themselves; then fewer parts are marked at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraft.config.choices import SpecialTokensInText
from loraft.errors import DataError
from loraft.rows.formats import THOUGHTS, Message, Tools
from loraft.tokenization.long_texts import Span
from loraft.tokenization.template_sandbox import Plain

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Unicode's private use areas: characters that mean nothing."""
APART = "data.split_turns: true makes each answer a row of its own, behind the prompt that generation feeds"
FORGOTTEN = (
    "the chat template leaves out what is thought in earlier turns, which then teach answers without thinking: "
    f"data.train_on: last trains the last turn alone, and {APART}"
)
THINKS = ("thought", *THOUGHTS)
"""The kinds of parts that hold what was thought."""
THINKING = re.compile(r"</?think(?:ing)?>")
OPENED = re.compile(r"<think(?:ing)?>\s*\Z")
LONGEST_OPENED = 20
"""Characters in which an opened thought and the lines behind it are looked for."""
Steps = tuple[str | int, ...]


@dataclass(frozen=True)
class ContentPart:
    """Something that a conversation says.

    Attributes:
        kind: content, thought, reasoning_content, thinking, tool_calls, tools or name.
        turn: Whose it is; None for the tools, which are nobody's.
        path: Where it stands in the message, or in the list of tools.
        end: The character of that text that it ends before.
    """

    kind: str
    turn: int | None
    path: Steps
    end: int


Places = Mapping[ContentPart, Sequence[int]]
"""Where in a rendering each part ends; nowhere where it is left out."""


Render = Callable[[Plain, Plain], str]


def find_parts(messages: Plain, tools: Plain, render: Render, turn: int | None = None) -> tuple[str, Places]:
    """What is rendered, and where in it each part of the messages ends, or of one; what cannot be told is missing."""
    text = render(messages, tools)
    parts = [part for part in _parts_of(messages, tools) if turn in (None, part.turn)]
    return text, _places(parts, messages, tools, text, render)


def _parts_of(messages: Plain, tools: Plain) -> list[ContentPart]:
    """The parts of a conversation."""
    found = []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        described, way = (function, (index, "function")) if isinstance(function, Mapping) else (tool, (index,))
        found += _parts("tools", None, (*way, "name"), described.get("name"))
    for turn, message in enumerate(messages):
        found += [ContentPart("thought" if thought else "content", turn, ("content",), end)
                  for thought, end in _thoughts_and_content(message["content"])]  # fmt: skip
        for key in (*THOUGHTS, "name"):
            found += _parts(key, turn, (key,), message.get(key))
        for index, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function")
            called = function if isinstance(function, Mapping) else {}
            for key in ("name", "arguments"):
                found += _parts("tool_calls", turn, ("tool_calls", index, "function", key), called.get(key))
    return found


def _places(parts: Sequence[ContentPart], messages: Plain, tools: Plain, text: str, render: Render) -> Places:
    if not parts:
        return {}
    marks = dict(zip(unused_characters(text, len(parts)), parts, strict=True))
    marked_messages, marked_tools = deepcopy(list(messages)), deepcopy(list(tools))
    # From the last to the first, so that a mark moves no other one's place.
    for mark, part in sorted(marks.items(), key=lambda each: -each[1].end):
        root: Any = marked_tools if part.turn is None else marked_messages[part.turn]
        *way, last = part.path
        for step in way:
            root = root[step]
        root[last] = root[last][: part.end] + mark + root[last][part.end :]
    try:
        rendered = render(marked_messages, marked_tools)
    except DataError:
        rendered = ""
    places: dict[ContentPart, list[int]] = {part: [] for part in parts}
    pattern = re.compile(f"[{''.join(marks)}]")
    for before, found in enumerate(pattern.finditer(rendered)):
        places[marks[found[0]]].append(found.start() - before)
    if pattern.sub("", rendered) == text:
        return places
    if len(parts) == 1:
        return {}
    halves = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    first, second = (_places(half, messages, tools, text, render) for half in halves)
    return {**first, **second}


def unused_characters(text: str, count: int = 1) -> list[str]:
    """Characters that mean nothing and that `text` does not have.

    Raises:
        DataError: It has nearly every one.
    """
    used = set(text)
    found = list(islice((chr(code) for code in chain(*PRIVATE) if chr(code) not in used), count))
    if len(found) < count:
        message = "uses every character of Unicode's private areas: none is left to find the answers by"
        raise DataError(message, remedy="leave such rows out")
    return found


def left_out(messages: Sequence[Message], places: Places, remedy: str) -> list[str]:
    """What there is to say of parts that are left out; `remedy` helps where one may not be.

    Raises:
        DataError: They may not be missing.
    """
    findings = []
    last = max((turn for turn, message in enumerate(messages) if message.role == "assistant"), default=None)
    for part in (part for part, found in places.items() if not found):
        role = "" if part.turn is None else messages[part.turn].role
        if part.kind == "name":
            findings.append(f"the chat template does not print the name of a message of role {role}")
        elif part.kind in THINKS and part.turn != last:
            findings.append(FORGOTTEN)
        elif part.kind == "thought":
            findings.append("the chat template leaves out what is thought in an answer: name a template that prints it")
        else:
            message, helps = f"the chat template leaves out what the {role} says", remedy
            if part.kind in THOUGHTS:
                message = f"the chat template prints no {part.kind}: it would be lost"
                helps = "name a template or a model that prints it, or leave it out of the rows"
            elif part.kind != "content" or role == "tool":
                what = {"content": "messages of tools", "tool_calls": "calls of tools"}.get(part.kind, part.kind)
                message = f"the chat template prints no {what}: they would be lost"
                helps = "name a template or a model that prints them, or leave such rows out"
            elif messages[part.turn or 0].more.get("tool_calls"):
                message = "the chat template prints no words beside a call of tools: they would be lost"
                helps = "name a template that prints them, or leave the words out"
            raise DataError(message, key="data.chat_template", remedy=helps)
    return findings


def thought_twice(text: str, places: Places) -> list[str]:
    """What there is to say of a thought in a content that the template has opened one before."""
    ends = [place for found in places.values() for place in found]
    for at in (found[0] for part, found in places.items() if part.kind == "thought" and found):
        before = text[max((end for end in ends if end < at), default=0) : at]
        if len([tag for tag in THINKING.findall(before) if not tag.startswith("</")]) > 1:
            what = "the chat template opens a thought of its own before one that is written in an answer"
            return [f"{what}: say what is thought in reasoning_content, or name another template"]
    return []


def inside_thought(text: str, answers: Iterable[Span]) -> list[str]:
    """What there is to say of answers that stand inside a thought that is opened before them, and which none closes."""
    for start, stop in answers:
        if OPENED.search(text, max(start - LONGEST_OPENED, 0), start) and not THINKING.search(text, start, stop):
            what = "an answer stands inside the thought that the chat template opens before it, and nothing closes that"
            return [f"{what}: say what is thought in reasoning_content, or name another template"]
    return []


def _thoughts_and_content(content: str) -> Iterator[tuple[bool, int]]:
    """The ends of what is thought and of what is said in a content; a thought is what a closing tag follows."""
    tags = list(THINKING.finditer(content))
    starts = [0, *(tag.end() for tag in tags)]
    stops = [*(tag.start() for tag in tags), len(content)]
    closing = [*(tag[0].startswith("</") for tag in tags), False]
    for start, stop, thought in zip(starts, stops, closing, strict=True):
        if said := content[start:stop].rstrip():
            yield thought, start + len(said)
    if tags and not said:  # a thought alone, which ends with its tag
        yield True, len(content.rstrip())


def _parts(kind: str, turn: int | None, path: Steps, value: object) -> list[ContentPart]:
    texts = ((each, text.rstrip()) for each, text in _strings(value, path))
    return [ContentPart(kind, turn, each, len(text)) for each, text in texts if text]


def _strings(value: object, path: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """The texts in a value, however deep, each with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping | list | tuple):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _strings(each, (*path, key))


def _with_keys(value: object) -> Iterator[str]:
    """The texts in a value, however deep, and the keys that they stand under."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        yield from chain.from_iterable(map(_with_keys, chain(*value.items()) if isinstance(value, Mapping) else value))


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds those of some tokens that are more than white space, of two that begin alike the longer one."""
    longest_first = sorted(filter(str.strip, tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


KEY = "data.special_tokens_in_text"


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """The control tokens of a tokenizer; `data.special_tokens_in_text` says what is done with them in a row's text."""

    tokenizer: PreTrainedTokenizerBase
    setting: SpecialTokensInText = "text"

    @property
    def as_text(self) -> bool:
        """They are read as plain text."""
        return self.setting != "keep"

    @property
    def recorded(self) -> Mapping[str, str]:
        """What is saved beside the weights of it: nothing where it is the default."""
        return {} if self.setting == "text" else {"special_tokens_in_text": self.setting}

    def findings(self, texts: Iterable[str]) -> tuple[str, ...]:
        """What there is to say of those in `texts`."""
        return tuple(map(self._finding, self._found_in(texts)))

    def refuse(self, texts: Iterable[str]) -> None:
        """Refuse those in `texts` where the setting is `error`.

        Raises:
            DataError: There is one.
        """
        if self.setting == "error" and (found := self._found_in(texts)):
            message = f"the control token {found[0]} is written in the text"
            remedy = "take it out; or write text, which reads it as plain text, or keep"
            raise DataError(message, key=KEY, remedy=remedy)

    def protected(self, messages: Sequence[Message], tools: Tools) -> Protected:
        """A conversation with a mark before each control token that is to be read as text.

        Raises:
            DataError: There is one, and the setting is `error`.
        """
        texts = [*_with_keys([[[message.content, message.more] for message in messages], tools])]
        self.refuse(texts)
        findings = self.findings(texts)
        if not findings or not self.as_text:
            return Protected(tuple(messages), tools, findings=findings)
        (mark,) = unused_characters("".join(texts))

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                return self._pattern.sub(lambda found: mark + found[0], value)
            if isinstance(value, Mapping):
                return {marked(key): marked(each) for key, each in value.items()}
            return [marked(each) for each in value] if isinstance(value, list | tuple) else value

        asked = (replace(each, content=marked(each.content), more=marked(each.more)) for each in messages)
        return Protected(tuple(asked), tuple(marked(tools)), re.compile(f"{mark}({self._pattern.pattern})?"), findings)

    def _found_in(self, texts: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(found for text in texts for found in self._pattern.findall(text)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return any_of(added.union(self.tokenizer.all_special_tokens))

    def _finding(self, token: str) -> str:
        written = f"the control token {token} is written in the text"
        if self.setting == "keep":
            return f"{written}, and is read as that token ({KEY}: keep)"
        ids: Any = self.tokenizer(token, add_special_tokens=False, split_special_tokens=True, verbose=False)
        if self.tokenizer.convert_tokens_to_ids(token) in ids["input_ids"]:
            stays = f"it stays that token; {KEY}: error refuses such rows"
            return f"{written}, and the tokenizer cannot read it as plain text: {stays}"
        return f"{written}, and is read as plain text; {KEY}: keep keeps it"


@dataclass(frozen=True)
class Protected:
    """A conversation in which a mark stands before each control token that a person wrote.

    Attributes:
        written: What finds such a token with its mark; None where there is none.
        findings: What there is to say, a sentence each.
    """

    messages: tuple[Message, ...]
    tools: Tools
    written: re.Pattern[str] | None = None
    findings: tuple[str, ...] = ()

    def unmarked(self, text: str, places: Sequence[int]) -> tuple[str, list[int], tuple[Span, ...]]:
        """A rendering without the marks: the text, where `places` are in it, and the control tokens that are text."""
        if self.written is None:
            return text, list(places), ()
        marks = list(self.written.finditer(text))
        moved = [place - sum(found.start() < place for found in marks) for place in places]
        starts = [found.start() - before for before, found in enumerate(marks)]
        literal = tuple((start, start + len(found[1] or "")) for start, found in zip(starts, marks, strict=True))
        return self.written.sub(lambda found: found[1] or "", text), moved, literal
