"""The config file: YAML in, YAML out.

It looks at the parser's events and builds the values itself: what could grow without bounds (aliases, depth, size) is
refused before there is anything to grow, words become values by YAML 1.2, and each value's place is at hand.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)

from loraft.config.dump import written
from loraft.config.file_text import checked_text, read_text
from loraft.config.located import Document, Entry, Found, KeyPath, Place, dotted
from loraft.config.overrides import apply_overrides
from loraft.config.schema import LoraSection, RunConfig
from loraft.config.validation_errors import MOST_PROBLEMS, STAND_INS, in_order, validated
from loraft.config.yaml_scalars import Value, in_words, scalar
from loraft.errors import ConfigError, Problem

MOST_DEPTH = 20
DATA = (".csv", ".jsonl", ".parquet")
"""How files of rows end, and no config does."""
SYNTAX_REMEDIES = {
    r"'\t'": "Indent with spaces: YAML takes no tabs.",
    "mapping values are not allowed here": "Put text that holds ': ' in quotes, and look at the indentation.",
    "expected <block end>": "Look at the indentation: keys of one section stand in one column.",
    "could not find expected ':'": "Write key: value, with a space after the colon.",
    "cannot start any token": "Put text that begins with such a character in quotes.",
}
"""What to do about the commonest mistakes, by a piece of the parser's own words."""

Events = Generator[Event, None, None]


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, with `key=value` overrides written over it.

    Args:
        path: The YAML file, of at most 64 KiB.
        overrides: Texts such as `training.max_steps=100`; of two for the same key the later one counts.

    Raises:
        ConfigError: With every problem of the file and of the overrides, each with its place.
    """
    name = str(path)
    builder = _Builder(name)
    _refuse_data(name, Path(path).suffix.lower() in DATA)
    top = builder.build(read_text(path))
    _refuse_data(name, Path(path).suffix.lower() == ".json" and isinstance(top, list))
    if top is None:
        raise ConfigError("is empty: a config needs at least model.name_or_path and data.train", where=name)
    if not isinstance(top, dict):
        raise ConfigError(f"must hold a mapping of keys to values; found {in_words(top)}", where=name)
    document = Document(name, top, builder.entries)
    found = builder.found + apply_overrides(document, overrides, _read_value)
    return validated(document, found)


def _refuse_data(name: str, is_data: bool) -> None:
    if is_data:
        remedy = f"loraft init CONFIG.yaml --data {shlex.quote(name)}"
        raise ConfigError("is data, not a config", where=name, remedy=remedy)


def load_lora(text: str) -> LoraSection:
    """The `lora` section that a text such as `r=8,target_modules=[q_proj,v_proj],layers=last:4` says.

    Raises:
        ConfigError: With every problem; the rules are those of a config.
    """
    parts = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]
    if unsaid := [part for part in parts if "=" not in part]:
        remedy = "Write it as r=8,target_modules=[q_proj,v_proj],layers=last:4, or name a config."
        raise ConfigError(f"{unsaid[0]!r} is no key=value", where="--lora", remedy=remedy)
    overrides = [f"lora.{part}" for part in parts]
    document = Document(name="--lora", values={name: dict(part) for name, part in STAND_INS.items()})
    try:
        return validated(document, apply_overrides(document, overrides, _read_value)).lora
    except ConfigError as error:
        raise ConfigError.several(replace(problem, where="--lora") for problem in error.problems) from None


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back equal."""
    return written(config)


def _read_value(text: str, name: str) -> Value:
    """The value of an override, read as a file of its own would be."""
    builder = _Builder(name)
    value = builder.build(checked_text(text, name))
    if builder.found:
        raise ConfigError.several(in_order(builder.found))
    return value


@dataclass
class _Builder:
    """Builds values from the parser's events, and keeps their places and what is wrong with them."""

    name: str
    entries: dict[KeyPath, Entry] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def build(self, text: str) -> Value:
        """The one value of `text`; null where there is none.

        Raises:
            ConfigError: Where the text cannot be read to its end.
        """
        events: Events = YAML(typ="safe", pure=True).parse(text)
        value: Value = None
        documents = 0
        try:
            for event in events:
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._refuse(event, "a second document begins here", "Keep one config in a file.")
                        self._stop()
                elif isinstance(event, NodeEvent):
                    value = self._node(event, events, ())
        except MarkedYAMLError as error:
            self._refuse_syntax(error)
        except YAMLError as error:
            self.found.append((Place(0, 1, 1, self.name), Problem(str(error), self.name)))
            self._stop()
        return value

    def _node(self, event: Event, events: Events, path: KeyPath) -> Value:
        """The value that begins with `event`; takes its further events from `events`."""
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            self._refuse(event, "anchors and aliases (& and *) are not read", "Write the value out.", path)
        if not isinstance(event, ScalarEvent | CollectionStartEvent):
            return None
        if event.tag is not None:
            self._refuse(event, f"tags such as {event.tag} are not read", "Leave the tag out.", path)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= MOST_DEPTH:
            self._refuse(event, f"is nested deeper than {MOST_DEPTH} levels")
            self._stop()
        if len(self.found) > MOST_PROBLEMS:
            self._stop()
        return self._mapping(events, path) if isinstance(event, MappingStartEvent) else self._list(events, path)

    def _scalar(self, event: ScalarEvent, path: KeyPath) -> Value:
        text: str = event.value
        # An escape such as "\0" or "\ud800" gets past the look at the file's characters.
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(event, "holds a character that is no text", path=path)
            return None
        return scalar(text) if event.style is None and event.implicit[0] else text

    def _list(self, events: Events, path: KeyPath) -> list[Value]:
        values: list[Value] = []
        for event in events:
            if isinstance(event, CollectionEndEvent):
                break
            inner = (*path, len(values))
            place = self._place(event)
            self.entries[inner] = Entry(place, place)
            values.append(self._node(event, events, inner))
        return values

    def _mapping(self, events: Events, path: KeyPath) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for event in events:
            if isinstance(event, CollectionEndEvent):
                break
            key = self._key(event, events, path)
            value_event = next(events)
            inner = (*path, key or "?")
            if key is None or key in values:
                if key is not None:
                    first = self.entries[inner].key
                    self._refuse(
                        event, f"is given twice: first at line {first.line}, column {first.column}", path=inner
                    )
                # The value is still looked through, apart from the places of the first one.
                _Builder(self.name, found=self.found)._node(value_event, events, inner)
                continue
            # The parser finds an empty value only after the line's end, where nobody would look for it.
            is_empty = isinstance(value_event, ScalarEvent) and not value_event.value and value_event.style is None
            self.entries[inner] = Entry(self._place(event), self._place(event if is_empty else value_event))
            values[key] = self._node(value_event, events, inner)
        return values

    def _key(self, event: Event, events: Events, path: KeyPath) -> str | None:
        if isinstance(event, ScalarEvent) and event.value:
            self._node(event, events, path)
            return str(event.value)
        self._refuse(event, "a key must be a plain word", path=path)
        if isinstance(event, NodeEvent):
            _Builder(self.name, found=self.found)._node(event, events, path)
        return None

    def _place(self, event: Event) -> Place:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        return Place(0, line, column, f"{self.name}:{line}:{column}")

    def _refuse(self, event: Event, message: str, remedy: str | None = None, path: KeyPath = ()) -> None:
        place = self._place(event)
        self.found.append((place, Problem(message, place.text, dotted(path) or None, remedy)))

    def _refuse_syntax(self, error: MarkedYAMLError) -> NoReturn:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        place = Place(0, line, column, f"{self.name}:{line}:{column}")
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        remedy = next((remedy for sign, remedy in SYNTAX_REMEDIES.items() if sign in reason), None)
        self.found.append((place, Problem(f"is not valid YAML: {reason}", place.text, remedy=remedy)))
        self._stop()

    def _stop(self) -> NoReturn:
        raise ConfigError.several(in_order(self.found))
