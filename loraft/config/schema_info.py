"""The schema, read as data: which keys there are, what each takes, in words, and which of them a config uses."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from loraft.config.choices import Method
from loraft.config.schema import RunConfig
from loraft.config.sections import Allowed, Section, UsedBy
from loraft.config.yaml_nodes import KeyPath, dotted

LIMITS = {
    "ge": "of at least {}",
    "gt": "above {}",
    "le": "of at most {}",
    "lt": "below {}",
    "min_length": "that is not empty",
}
NAMES: dict[object, str] = {str: "text", int: "a whole number", float: "a number", types.NoneType: "null", None: "null"}
METHODS: frozenset[str] = frozenset(get_args(Method))
PLURALS = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}


@dataclass(frozen=True)
class Expected:
    """What may stand at one place: an annotation and the limits set on it, as pydantic keeps them of a field."""

    annotation: object
    metadata: tuple[object, ...] = ()

    @classmethod
    def of(cls, annotation: Any) -> Expected:
        """An annotation, with its limits apart."""
        field = FieldInfo.from_annotation(annotation)
        return cls(field.annotation, tuple(field.metadata))

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
            is_list = get_origin(one.annotation) is tuple
            kind = Expected.of(get_args(one.annotation)[0]).annotation if is_list else one.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                return kind
        return None

    def under(self, part: str | int) -> Expected | None:
        """What may stand under a key or an index; a source that is no list is its own only element."""
        for one in self.alternatives:
            origin, arguments = get_origin(one.annotation), get_args(one.annotation)
            if origin is tuple and isinstance(part, int):
                return Expected.of(arguments[0])
            if origin is dict and isinstance(part, str):
                return Expected.of(arguments[1])
        field = self.section.model_fields.get(str(part)) if self.section is not None else None
        return Expected(field.annotation, tuple(field.metadata)) if field is not None else None

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
        elif self.annotation is bool:
            yield from ("true", "false")
        elif isinstance(self.annotation, type) and issubclass(self.annotation, Section):
            yield "a mapping with keys such as " + ", ".join(list(self.annotation.model_fields)[:2])
        else:
            limits = [(getattr(note, name, None), words) for note in self.metadata for name, words in LIMITS.items()]
            said = " and ".join(words.format(limit) for limit, words in limits if limit is not None)
            yield f"{NAMES[self.annotation]} {said}".strip()


def expected(path: KeyPath) -> Expected | None:
    """What may stand under `path`; None where the schema has no such key."""
    found: Expected | None = Expected(RunConfig)
    for part in path:
        found = found.under(part) if found is not None else None
    return found


def keys_of(path: KeyPath) -> tuple[str, ...]:
    """The keys of the section at `path`, in the schema's order; none where there is no section."""
    found = expected(path)
    return tuple(found.section.model_fields) if found is not None and found.section is not None else ()


def places_of(key: str) -> tuple[str, ...]:
    """The dotted keys that end in `key`, leaving out those of single data sources."""
    return tuple(known for known in KEYS if known.rpartition(".")[2] == key)


def path_of(key: str) -> tuple[str, ...]:
    """A dotted key as a path; what follows a free mapping such as `lora.rank_pattern` is one name, dots and all."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        found = expected(tuple(parts[:depth]))
        if found is not None and found.takes(dict):
            return (*parts[:depth], ".".join(parts[depth:]))
    return tuple(parts)


KEYS: Mapping[str, Expected] = {
    dotted(path): found
    for section in RunConfig.model_fields
    for path in ((section,), *((section, key) for key in keys_of((section,))))
    if (found := expected(path)) is not None
}
"""Every section and key, dotted, with what it takes."""
USED_BY: Mapping[str, frozenset[str]] = {
    key: note.names for key, found in KEYS.items() for note in found.metadata if isinstance(note, UsedBy)
}
"""The sections and keys that not every task or method uses, and the tasks or methods that do."""


def idle_keys(config: RunConfig) -> list[str]:
    """The dotted keys and sections that the chosen task or method does not use, whatever they say."""
    return [key for key, users in USED_BY.items() if users.isdisjoint((config.task, config.method))]


def unused_keys(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What is set and not used, each with what does not use it.

    A section of another method is set as soon as it stands in the file, a key once it says something of its own.
    """
    for key in idle_keys(config):
        section, _, name = key.partition(".")
        within, name = (getattr(config, section), name) if name else (config, section)
        if USED_BY[key] <= METHODS:
            yield from [(f"the section {key}", f"method: {config.method}")] if name in within.model_fields_set else []
        elif within.said(name):
            yield key, f"task: {config.task}"
    data, training = config.data, config.training
    in_8_bits = config.method == "qlora" and config.quantization.bits == 8
    for section, keys, is_so, why in (
        ("quantization", ("double_quant",), in_8_bits, "quantization.type: int8"),
        ("training", ("group_by_length",), data.packing == "fill", "data.packing: fill"),
        ("training", ("adam_beta1", "adam_beta2"), training.optim == "adafactor", "training.optim: adafactor"),
        ("training", ("eval_steps", "metric_for_best_model", "sample_prompts"), data.eval is None, "data.eval: null"),
        ("training", ("project", "run_name"), not training.report_to, "training.report_to: []"),
        ("data", ("shuffle_buffer",), not data.streaming, "data.streaming: false"),
        ("data", ("shuffle_buffer",), data.streaming and data.shuffle is False, "data.shuffle: false"),
    ):
        yield from ((f"{section}.{key}", why) for key in getattr(config, section).said(*keys) if is_so)
    for key in config.preference.of_other_losses:
        yield f"preference.{key}", f"preference.loss: {config.preference.loss}"
    if any(source.weight != 1 for source in data.eval_sources):
        yield "the weight of a source", "data.eval"
