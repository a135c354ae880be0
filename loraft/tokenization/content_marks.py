"""Which of what a conversation says stands in its rendering, and where.

A template is a program, and may move, change or leave out anything that it is given. So each part of a conversation
(a content, a thought, the name of a tool) gets a mark of its own, a character that the text does not have, and the
conversation is rendered again: a part whose mark is missing was left out. Without the marks that rendering must be the
text, or the marks themselves made a difference; then fewer parts are marked at a time.
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
from loraft.rows.formats import THOUGHTS, Message
from loraft.tokenization.boundaries import Span

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
    path: tuple[str | int, ...]
    end: int


def parts_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[ContentPart]:
    """The parts of a conversation as a template takes it: messages as mappings, and tools as JSON schemas."""
    found = []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        described, way = (function, (index, "function")) if isinstance(function, Mapping) else (tool, (index,))
        found += [ContentPart("tools", None, *each) for each in _texts(described.get("name"), (*way, "name"))]
    for turn, message in enumerate(messages):
        found += [ContentPart("thought" if thought else "content", turn, ("content",), end)
                  for thought, end in _thoughts_and_content(message["content"])]  # fmt: skip
        for key in (*THOUGHTS, "name"):
            found += [ContentPart(key, turn, path, end) for path, end in _texts(message.get(key), (key,))]
        for index, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function")
            called = function if isinstance(function, Mapping) else {}
            for key in ("name", "arguments"):
                path = ("tool_calls", index, "function", key)
                found += [ContentPart("tool_calls", turn, *each) for each in _texts(called.get(key), path)]
    return found


def find_parts(
    parts: Sequence[ContentPart],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    text: str,
    render: Callable[[Any, Any], str],
) -> dict[ContentPart, list[int]]:
    """Where in `text` each part ends, nowhere where it is left out; a part that cannot be told is missing.

    Args:
        parts: What is looked for.
        messages: The conversation as a template takes it.
        tools: Its tools.
        text: What `render` gives for both.
        render: The template.
    """
    if not parts:
        return {}
    marks = dict(zip(unused_characters(text, len(parts)), parts, strict=True))
    marked_messages, marked_tools = deepcopy(list(messages)), deepcopy(list(tools))
    # From the last to the first, so that a mark moves no other one's place.
    for mark, part in sorted(marks.items(), key=lambda each: -each[1].end):
        _put(marked_tools if part.turn is None else marked_messages[part.turn], part, mark)
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
    half = len(parts) // 2
    return {
        **find_parts(parts[:half], messages, tools, text, render),
        **find_parts(parts[half:], messages, tools, text, render),
    }


def unused_characters(text: str, count: int = 1) -> list[str]:
    """Characters that mean nothing and that `text` does not have.

    Raises:
        DataError: It has nearly every one.
    """
    used = set(text)
    found = list(islice((chr(code) for code in chain(*PRIVATE) if chr(code) not in used), count))
    if len(found) < count:
        raise DataError(
            "uses every character of Unicode's private areas: none is left to find the answers by",
            remedy="leave such rows out",
        )
    return found


def left_out(messages: Sequence[Message], parts: Sequence[ContentPart], remedy: str) -> list[str]:
    """What there is to say of parts that the rendering does not hold; `remedy` helps where one may not be missing.

    Raises:
        DataError: They may not be missing.
    """
    findings = []
    last = max((turn for turn, message in enumerate(messages) if message.role == "assistant"), default=None)
    for part in parts:
        role = "" if part.turn is None else messages[part.turn].role
        if part.kind == "name":
            findings.append(f"the chat template does not print the name of a message of role {role}")
        elif part.kind in THINKS and part.turn != last:
            findings.append(FORGOTTEN)
        elif part.kind == "thought":
            findings.append("the chat template leaves out what is thought in an answer: name a template that prints it")
        elif part.kind in THOUGHTS:
            raise DataError(
                f"the chat template prints no {part.kind}, and the row has it",
                key="data.chat_template",
                remedy="name a template that prints it, or leave it out of the rows",
            )
        elif part.kind == "content" and role != "tool":
            raise DataError(
                f"the chat template leaves out what the {role} says",
                key="data.chat_template",
                remedy=remedy,
            )
        else:
            what = {"content": "messages of tools", "tool_calls": "calls of tools"}.get(part.kind, part.kind)
            raise DataError(
                f"the chat template prints no {what}, and the row has them",
                key="data.chat_template",
                remedy="name a template that prints them, or leave such rows out",
            )
    return findings


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


def _texts(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The texts in a value, however deep, each with its path and its end."""
    if isinstance(value, str) and value.strip():
        yield path, len(value.rstrip())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(each, (*path, key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _texts(each, (*path, index))


def _put(root: Any, part: ContentPart, mark: str) -> None:
    *way, last = part.path
    for step in way:
        root = root[step]
    root[last] = root[last][: part.end] + mark + root[last][part.end :]


KEY = "data.special_tokens_in_text"


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """The control tokens of a tokenizer, and what is done with them in the text of rows.

    Attributes:
        tokenizer: The model's.
        setting: `data.special_tokens_in_text`.
    """

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

    def found_in(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Those that are written in `texts`."""
        return tuple(dict.fromkeys(found for text in texts for found in self._pattern.findall(text)))

    def findings(self, texts: Iterable[str]) -> tuple[str, ...]:
        """What there is to say of those in `texts`."""
        return tuple(self._finding(token) for token in self.found_in(texts))

    def refuse(self, texts: Iterable[str]) -> None:
        """Refuse those in `texts` where the setting is `error`.

        Raises:
            DataError: There is one.
        """
        if self.setting == "error" and (found := self.found_in(texts)):
            raise DataError(
                f"the control token {found[0]} is written in the text",
                key=KEY,
                remedy="take it out; or write text, which reads it as plain text, or keep",
            )

    def protected(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Protected:
        """A conversation with a mark before each control token that is to be read as text.

        Raises:
            DataError: There is one, and the setting is `error`.
        """
        texts = list(_strings([[message.content, message.more] for message in messages])) + list(_strings(tools))
        self.refuse(texts)
        findings = self.findings(texts)
        if not findings or not self.as_text:
            return Protected(tuple(messages), tuple(tools), findings=findings)
        (mark,) = unused_characters("".join(texts))

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                return self._pattern.sub(lambda found: mark + found[0], value)
            if isinstance(value, Mapping):
                return {key: marked(each) for key, each in value.items()}
            return [marked(each) for each in value] if isinstance(value, list | tuple) else value

        said = (replace(each, content=marked(each.content), more=marked(each.more)) for each in messages)
        return Protected(tuple(said), tuple(marked(tools)), re.compile(f"{mark}({self._pattern.pattern})?"), findings)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted({token for token in added | set(self.tokenizer.all_special_tokens) if token.strip()})
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _finding(self, token: str) -> str:
        if self.setting == "keep":
            return f"the control token {token} is written in the text, and is read as that token ({KEY}: keep)"
        ids: Any = self.tokenizer(token, add_special_tokens=False, split_special_tokens=True, verbose=False)
        if self.tokenizer.convert_tokens_to_ids(token) in ids["input_ids"]:
            return (
                f"the control token {token} is written in the text, and the tokenizer cannot read it as plain text: "
                f"it stays that token; {KEY}: error refuses such rows"
            )
        return f"the control token {token} is written in the text, and is read as plain text; {KEY}: keep keeps it"


@dataclass(frozen=True)
class Protected:
    """A conversation in which a mark stands before each control token that a person wrote.

    Attributes:
        messages: Its messages.
        tools: Its tools.
        written: What finds such a token with its mark; None where there is none.
        findings: What there is to say, a sentence each.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    written: re.Pattern[str] | None = None
    findings: tuple[str, ...] = ()

    def unmarked(self, text: str, places: Sequence[int]) -> tuple[str, list[int], tuple[Span, ...]]:
        """A rendering without the marks: the text, where `places` are in it, and the control tokens that are text."""
        if self.written is None:
            return text, list(places), ()
        marks = list(self.written.finditer(text))
        starts = [found.start() for found in marks]
        literal = tuple(
            (found.start() - before, found.start() - before + len(found[1] or "")) for before, found in enumerate(marks)
        )
        moved = [place - sum(start < place for start in starts) for place in places]
        return self.written.sub(lambda found: found[1] or "", text), moved, literal


def _strings(value: Any) -> Iterable[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
