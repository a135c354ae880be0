"""The text of a config as a tree of nodes, each a value with its place, and what is wrong with the text.

The tree is built from the parser's events: what could grow without bounds (aliases, depth) is refused before there is
anything to grow, and plain words become values by YAML 1.2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)

from loraft.errors import Problem

MOST_DEPTH = 20
MOST_PROBLEMS = 100
"""A file that is no config at all is not answered key by key."""
MOST_NODES = 10_000
"""Values of one file: twice as many, for which 64 KiB have room, took longer than a second."""
LONGEST_SHOWN = 60
NO_NAME = '""'
NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not take as a character of a file, and a byte order mark in the middle of one."""
SYNTAX_REMEDIES = {
    r"'\t'": "Indent with spaces: YAML takes no tabs.",
    "sequence entries are not allowed here": 'Begin a list on a line of its own; standard input is "-", in quotes.',
    "mapping values are not allowed here": "Put text that holds ': ' in quotes, and look at the indentation.",
    "expected <block end>": "Look at the indentation: keys of one section stand in one column.",
    "could not find expected ':'": "Write key: value, with a space after the colon.",
    "cannot start any token": "Put text that begins with such a character in quotes.",
}
"""What to do about the commonest mistakes, by a piece of the parser's own words."""
WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
DECIMAL = re.compile(r"[-+]?[0-9]+")
OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]{1,999}|0x[0-9a-fA-F]{1,999}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Plain = None | bool | int | float | str
Value = Plain | list["Value"] | dict[str, "Value"]
KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """A place that a problem can point to; sorts the file before overrides, then by line and column, both from 1."""

    override: int
    line: int
    column: int
    text: str


Found = tuple[Place, Problem]
"""A problem, with the place to sort it by."""


def problem_at(place: Place, message: str, key: str | None = None, remedy: str | None = None) -> Found:
    """A problem that is found at `place`."""
    return place, Problem(message, place.text, key, remedy)


@dataclass
class Node:
    """A value, where it stands, and where its key does; an element of a list is its own key."""

    content: Plain | list[Node] | dict[str, Node]
    place: Place
    key: Place

    @property
    def value(self) -> Value:
        """The value without places."""
        if isinstance(self.content, dict):
            return {key: node.value for key, node in self.content.items()}
        return [node.value for node in self.content] if isinstance(self.content, list) else self.content

    def child(self, part: str | int) -> Node | None:
        """What stands under a key or an index."""
        if isinstance(self.content, dict) and isinstance(part, str):
            return self.content.get(part)
        if isinstance(self.content, list) and isinstance(part, int) and part < len(self.content):
            return self.content[part]
        return None

    def near(self, path: KeyPath) -> Node:
        """The node under `path`, or the innermost one around it that is written down."""
        node = self
        for part in path:
            if (inner := node.child(part)) is None:
                break
            node = inner
        return node


def dotted(path: KeyPath) -> str:
    """`("data", "train", 1, "path")` as `data.train[1].path`; a name that is empty as `""`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part or NO_NAME}" for part in path).removeprefix(".")


def read_yaml(text: str, name: str, override: str | None = None, number: int = 0) -> tuple[Node | None, list[Found]]:
    """The top node of a text, None where it cannot be read to its end, and what is wrong with it.

    Its places are called by `name`, the file's or the override's. Of an override, the `number` says which it is, and
    each problem has its key, `override`.
    """
    reader = _Reader(name, override, number)
    return reader.read(text), reader.found


class _Unreadable(Exception):
    """What is wrong ends the reading."""


@dataclass
class _Reader:
    """Builds nodes from the parser's events, and keeps what is wrong with them."""

    name: str
    override: str | None
    number: int
    found: list[Found] = field(default_factory=list)
    nodes: int = 0

    def read(self, text: str) -> Node | None:
        unreadable = NO_TEXT.search(text)
        if unreadable is not None:
            before = text[: unreadable.start()]
            place = self._place(before.count("\n") + 1, len(before) - before.rfind("\n"))
            self._refuse(place, f"holds the character U+{ord(unreadable[0]):04X}, which is no text")
            return None
        try:
            return self._document(YAML(typ="safe", pure=True).parse(text))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark.line + 1, mark.column + 1) if mark else self._place(1, 1)
            reason = " ".join(str(part) for part in (error.context, error.problem) if part)
            remedy = next((remedy for sign, remedy in SYNTAX_REMEDIES.items() if sign in reason), None)
            self._refuse(place, f"is not valid YAML: {reason}", remedy=remedy)
        except YAMLError as error:
            self._refuse(Place(self.number, 1, 1, self.name), str(error))
        except _Unreadable:
            pass
        return None

    def _document(self, events: Iterator[Event]) -> Node:
        top = Place(self.number, 1, 1, self.name)
        node = None
        for event in events:
            if isinstance(event, NodeEvent):
                node = self._node(event, events, (), top)
            elif isinstance(event, DocumentStartEvent) and node is not None:
                self._refuse(self._at(event), "a second document begins here", remedy="Keep one config in a file.")
                raise _Unreadable
        return node or Node(None, top, top)

    def _node(self, event: Event, events: Iterator[Event], path: KeyPath, key: Place) -> Node:
        """The node that begins with `event`; takes its further events from `events`."""
        place = self._at(event)
        self.nodes += 1
        if self.nodes > MOST_NODES:
            self._refuse(place, f"holds more than {MOST_NODES:,} values, and so is no config")
            raise _Unreadable
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self._refuse(place, "anchors and aliases (& and *) are not read", path, "Write the value out.")
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            self._refuse(place, f"tags such as {event.tag} are not read", path, "Leave the tag out.")
        if isinstance(event, ScalarEvent):
            # An escape such as "\0" or "\ud800" gets past the look at the text's characters.
            if no_text := re.search("[\0\ud800-\udfff]", event.value):
                self._refuse(place, "holds a character that is no text", path)
            value = None if no_text else scalar(event.value) if event.style is None else event.value
            # The parser finds an empty value only after the line's end, where nobody would look for it.
            return Node(value, key if event.value == "" and event.style is None else place, key)
        if not isinstance(event, CollectionStartEvent):
            return Node(None, place, key)
        if len(path) >= MOST_DEPTH:
            self._refuse(place, f"is nested deeper than {MOST_DEPTH} levels")
            raise _Unreadable
        if len(self.found) > MOST_PROBLEMS:
            raise _Unreadable
        if isinstance(event, MappingStartEvent):
            return Node(self._mapping(events, path), place, key)
        elements = []
        for index, element in enumerate(events):
            if isinstance(element, CollectionEndEvent):
                break
            elements.append(self._node(element, events, (*path, index), self._at(element)))
        return Node(elements, place, key)

    def _mapping(self, events: Iterator[Event], path: KeyPath) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for event in events:
            if isinstance(event, CollectionEndEvent):
                break
            place = self._at(event)
            key = event.value if isinstance(event, ScalarEvent) and (event.value or event.style) else None
            if key is None:
                self._refuse(place, "a key must be a plain word", path, "Name it, or leave it out.")
            self._node(event, events, (*path, "?") if key is None else path, place)
            inner = (*path, "?" if key is None else key)
            if key is not None and key in nodes:
                first = nodes[key].key
                self._refuse(place, f"is given twice: first at line {first.line}, column {first.column}", inner)
            node = self._node(next(events), events, inner, place)
            if key is not None:
                nodes.setdefault(key, node)
        return nodes

    def _at(self, event: Event) -> Place:
        return self._place(event.start_mark.line + 1, event.start_mark.column + 1)

    def _place(self, line: int, column: int) -> Place:
        return Place(self.number, line, column, self.name if self.number else f"{self.name}:{line}:{column}")

    def _refuse(self, place: Place, message: str, path: KeyPath = (), remedy: str | None = None) -> None:
        self.found.append(problem_at(place, message, self.override or dotted(path) or None, remedy))


def scalar(text: str) -> Plain:
    """The value of a plain (unquoted) word by the core schema of YAML 1.2.2, section 10.3.2.

    `2e-4` is a number, `010` is 10, `no` and `1_000` are text. A whole number with more digits than Python prints is a
    float, and so infinite.
    """
    if text in WORDS:
        return WORDS[text]
    if DECIMAL.fullmatch(text) and len(text) < sys.int_info.default_max_str_digits:
        return int(text)
    if OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if NOT_FINITE.fullmatch(text) else text


def in_words(value: object) -> str:
    """What was found, as an error message says it: `the text '16'`, `the number 3`, `a list`."""
    match value:
        case None | bool():
            return "null" if value is None else str(value).lower()
        case int() | float():
            is_long = isinstance(value, int) and value.bit_length() > 4 * LONGEST_SHOWN
            return f"the number {_shortened(f'{value:#x}' if is_long else str(value))}"
        case str():
            return f"the text {_shortened(value)!r}"
        case _:
            kind = "list" if isinstance(value, list | tuple) else "mapping"
            return f"a {kind}" if value else f"an empty {kind}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
