"""The schema, read as data: which keys there are, and what each takes, in words."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin

import annotated_types as bounds
from pydantic.fields import FieldInfo

from loraft.config.located import KeyPath, dotted
from loraft.config.schema import Allowed, RunConfig, Section

NAMES = {str: "text", int: "a whole number", float: "a number"}
PLURALS = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}


@dataclass(frozen=True)
class Expected:
    """What may stand at one place: an annotation and the limits set on it."""

    annotation: object
    metadata: tuple[object, ...] = ()

    @classmethod
    def of(cls, annotation: object, metadata: Iterable[object] = ()) -> Expected:
        """An annotation as pydantic keeps it, unpacked as far as its limits go."""
        limits = tuple(_limits(metadata))
        if get_origin(annotation) is Annotated:
            inner, *notes = get_args(annotation)
            return cls.of(inner, (*limits, *notes))
        return cls(annotation, limits)

    @property
    def alternatives(self) -> tuple[Expected, ...]:
        """The members of a union, and those of unions inside it; else the one thing itself."""
        if get_origin(self.annotation) in (Union, types.UnionType):
            return tuple(one for member in get_args(self.annotation) for one in Expected.of(member).alternatives)
        return (self,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed here."""
        literals = (one.annotation for one in self.alternatives if get_origin(one.annotation) is Literal)
        return tuple(str(word) for literal in literals for word in get_args(literal))

    def takes(self, kind: type) -> bool:
        """Whether a `str`, `bool`, `int`, `float` or `dict` is one of the alternatives."""
        return any(kind in (one.annotation, get_origin(one.annotation)) for one in self.alternatives)

    @property
    def section(self) -> type[Section] | None:
        """The section whose keys stand here, if one may."""
        for one in self.alternatives:
            if isinstance(one.annotation, type) and issubclass(one.annotation, Section):
                return one.annotation
            if get_origin(one.annotation) is tuple and (inner := Expected.of(get_args(one.annotation)[0]).section):
                return inner
        return None

    def under(self, part: str | int) -> Expected | None:
        """What may stand under a key or an index; a source that is no list is its own only element."""
        for one in self.alternatives:
            origin, arguments = get_origin(one.annotation), get_args(one.annotation)
            if origin is tuple and isinstance(part, int):
                return Expected.of(arguments[0])
            if origin is dict and isinstance(part, str):
                return Expected.of(arguments[1])
        section = self.section
        if section is not None and isinstance(part, str) and part in section.model_fields:
            field = section.model_fields[part]
            return Expected.of(field.annotation, field.metadata)
        return None

    def __str__(self) -> str:
        for note in self.metadata:
            if isinstance(note, Allowed):
                return note.words
        *most, last = [words for one in self.alternatives for words in one._words()]
        return f"{', '.join(most)} or {last}" if most else last

    def _words(self) -> Iterator[str]:
        origin = get_origin(self.annotation)
        if origin is Literal:
            yield from self.choices
        elif origin is tuple:
            inner = str(Expected.of(get_args(self.annotation)[0]))
            yield f"a list of {PLURALS.get(inner, inner)}"
        elif origin is dict:
            inner = str(Expected.of(get_args(self.annotation)[1]))
            yield f"a mapping of names, each to {inner}"
        elif self.annotation in (None, types.NoneType):
            yield "null"
        elif self.annotation is bool:
            yield from ("true", "false")
        elif isinstance(self.annotation, type) and issubclass(self.annotation, Section):
            yield "a mapping with keys such as " + ", ".join(list(self.annotation.model_fields)[:2])
        else:
            yield self._bounded()

    def _bounded(self) -> str:
        words = []
        for limit in self.metadata:
            match limit:
                case bounds.Ge(ge=low):
                    words.append(f"of at least {low}")
                case bounds.Gt(gt=low):
                    words.append(f"above {low}")
                case bounds.Le(le=high):
                    words.append(f"of at most {high}")
                case bounds.Lt(lt=high):
                    words.append(f"below {high}")
                case bounds.MinLen():
                    words.append("that is not empty")
        name = NAMES[self.annotation] if isinstance(self.annotation, type) else str(self.annotation)
        return " ".join((name, " and ".join(words))).strip()


def _limits(metadata: Iterable[object]) -> Iterator[object]:
    for note in metadata:
        if isinstance(note, FieldInfo):
            yield from note.metadata
        else:
            yield note


TOP = Expected(RunConfig)


def expected(path: KeyPath) -> Expected | None:
    """What may stand under `path`; None where the schema has no such key."""
    found: Expected | None = TOP
    for part in path:
        found = found.under(part) if found is not None else None
    return found


def keys_of(path: KeyPath) -> tuple[str, ...]:
    """The keys of the section at `path`, in the schema's order; none where there is no section."""
    found = expected(path)
    return tuple(found.section.model_fields) if found is not None and found.section is not None else ()


@cache
def places_of(key: str) -> tuple[str, ...]:
    """The dotted keys that end in `key`, leaving out those of single data sources."""
    sections = [name for name in RunConfig.model_fields if expected((name,)) and keys_of((name,))]
    found = [dotted((name, key)) for name in sections if key in keys_of((name,))]
    return (key, *found) if key in RunConfig.model_fields else tuple(found)


def path_of(key: str) -> tuple[str, ...]:
    """A dotted key as a path; what follows a free mapping such as `lora.rank_pattern` is one name, dots and all."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        found = expected(tuple(parts[:depth]))
        if found is not None and found.takes(dict):
            return (*parts[:depth], ".".join(parts[depth:]))
    return tuple(parts)
