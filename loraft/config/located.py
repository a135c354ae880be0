"""The values of a config file, and where each one stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from loraft.config.yaml_scalars import Value
from loraft.errors import Problem

KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """A place that a problem can point to; sorts files before overrides, then by line and column, both from 1."""

    override: int
    line: int
    column: int
    text: str


class Entry(NamedTuple):
    """Where a value stands, and where its key does (the same place for a list's element)."""

    key: Place
    value: Place


Found = tuple[Place, Problem]
"""A problem, with the place to sort it by."""


@dataclass
class Document:
    """Values as nested dicts and lists, and the place of each; overrides are written over them."""

    name: str
    values: dict[str, Value]
    entries: dict[KeyPath, Entry] = field(default_factory=dict)

    def at(self, path: KeyPath) -> Value:
        """The value under `path`; null where there is none."""
        value: Value = self.values
        for part in path:
            if isinstance(value, dict):
                value = value.get(str(part))
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def has(self, path: KeyPath) -> bool:
        """Whether the file or an override says `path`."""
        return path in self.entries

    def entry(self, path: KeyPath) -> Entry:
        """The places of `path`, or of the nearest thing around it that is written down."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.entries:
                found = self.entries[path[:length]]
                # What is missing is looked for in its section, which the eye finds by its key.
                return found if length == len(path) else Entry(found.key, found.key)
        top = Place(0, 1, 1, self.name)
        return Entry(top, top)

    def replace(self, path: tuple[str, ...], value: Value, place: Place) -> None:
        """Write `value` over what stands under `path`; the sections above it must be mappings, null or absent."""
        section = self.values
        for depth, part in enumerate(path[:-1], start=1):
            self.entries.setdefault(path[:depth], Entry(place, place))
            inner = section.get(part)
            if inner is None:
                inner = section[part] = {}
            if not isinstance(inner, dict):
                raise TypeError(f"{dotted(path[:depth])} is no mapping")
            section = inner
        section[path[-1]] = value
        for known in [known for known in self.entries if known[: len(path)] == path]:
            del self.entries[known]
        self._place_all(path, value, Entry(place, place))

    def _place_all(self, path: KeyPath, value: Value, entry: Entry) -> None:
        self.entries[path] = entry
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, inner in parts:
            self._place_all((*path, part), inner, entry)


def dotted(path: KeyPath) -> str:
    """`("data", "train", 1, "path")` as `data.train[1].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
