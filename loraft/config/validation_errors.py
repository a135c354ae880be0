"""What the schema finds wrong, as problems with a place, a key and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loraft.config.aliases import ONLY_NEAR, answer_to_value, no_such_value
from loraft.config.located import Document, Found, KeyPath, dotted
from loraft.config.schema import NO_NULL, RunConfig
from loraft.config.schema_info import Expected, expected, keys_of
from loraft.config.suggestions import advice_for_key
from loraft.config.yaml_scalars import Value, in_words, scalar
from loraft.errors import ConfigError, Problem

STAND_INS: dict[str, dict[str, Value]] = {"model": {"name_or_path": "?"}, "data": {"train": "?"}}
"""What must be there, for a second look at a config that lacks it."""

MOST_PROBLEMS = 100
"""A file that is no config at all is not answered key by key."""


def validated(document: Document, earlier: Iterable[Found] = ()) -> RunConfig:
    """The config that `document` holds.

    Args:
        document: The values, overrides included.
        earlier: What was found wrong before the values were looked at.

    Raises:
        ConfigError: With everything that is wrong, in the order of the file, overrides last.
    """
    found = list(earlier)
    try:
        config = RunConfig.model_validate(document.values)
    except ValidationError as error:
        known = {place for place, _ in found}
        found += [one for one in _problems(error.errors(include_url=False), document) if one[0] not in known]
    else:
        if not found:
            return config
    raise ConfigError.several(in_order(found))


def in_order(found: Iterable[Found]) -> list[Problem]:
    """The problems by their places, `MOST_PROBLEMS` of them at most."""
    problems = [problem for _, problem in sorted(found, key=lambda one: one[0])]
    if len(problems) > MOST_PROBLEMS:
        left_out = len(problems) - MOST_PROBLEMS
        return [*problems[:MOST_PROBLEMS], Problem(f"and {left_out} more problems")]
    return problems


def _problems(errors: list[ErrorDetails], document: Document) -> list[Found]:
    """One problem for each place; where branches of a union disagree, what lies deepest tells most."""
    located = {path: error for error in errors if (path := _path(error, document))}
    outer = {path[:length] for path in located for length in range(1, len(path))}
    innermost = [(path, error) for path, error in located.items() if path not in outer]
    wrong = [path for path, _ in innermost]
    missing = [path for path, error in innermost if error["type"] == "missing"]
    told = {path: _problem(path, error, document) for path, error in innermost[:MOST_PROBLEMS]}
    found = [one for path, one in told.items() if path not in missing or not _is_told(path, told.values())]
    contradictions = [error for error in errors if error["type"] == "contradiction"]
    if wrong and not contradictions:
        contradictions = _contradictions_beside(wrong, document)
    return found + [_contradiction(error, document) for error in contradictions]


def _is_told(missing: KeyPath, told: Iterable[Found]) -> bool:
    """Whether the remedy for a key of another tool says how to write what is missing."""
    section = str(missing[0])
    keys = [f"Write {section}.{key}: " for key in STAND_INS.get(section, ())]
    return any((problem.remedy or "").startswith(key) for _, problem in told for key in keys)


def _path(error: ErrorDetails, document: Document) -> KeyPath:
    """The path in the document, without the names that pydantic gives to branches of a union."""
    path: KeyPath = ()
    parts = error["loc"]
    for number, part in enumerate(parts, start=1):
        missing = error["type"] == "missing" and number == len(parts)
        if missing or document.has((*path, part)):
            path = (*path, part)
    return path


def _problem(path: KeyPath, error: ErrorDetails, document: Document) -> Found:
    value = document.at(path)
    wanted = expected(path)
    entry = document.entry(path)
    key = dotted(path)
    if error["type"] == "missing":
        return entry.key, _missing(path, entry.key.text)
    if wanted is None:
        return entry.key, Problem("is no key of loraft", entry.key.text, key, advice_for_key(path, value))
    if len(path) == 1 and keys_of(path) and not isinstance(value, dict):
        return entry.value, _no_section(path, value, entry.value.text)
    if error["type"] == "value_error":
        message = str(error["msg"]).removeprefix("Value error, ")
        return entry.value, Problem(f"{message}; found {in_words(value)}", entry.value.text, key)
    message = f"must be {wanted}; found {in_words(value)}"
    return entry.value, Problem(message, entry.value.text, key, _remedy(value, wanted, key))


def _no_section(path: KeyPath, value: Value, where: str) -> Problem:
    key = dotted(path)
    if value is None:
        remedy = f"Indent its keys beneath it, or remove {key}."
        return Problem("is an empty section", where, key, remedy)
    known = keys_of(path)
    first = known[0]
    shown = (
        f" For this one, write {key}.{first}: {value}." if key in ("model", "data") and isinstance(value, str) else ""
    )
    remedy = f"Its keys are {', '.join(known)}.{shown}"
    return Problem(f"must be a section, with its keys indented beneath it; found {in_words(value)}", where, key, remedy)


def _missing(path: KeyPath, where: str) -> Problem:
    *sections, key = (str(part) for part in path if isinstance(part, str))
    if not sections and keys_of(path):
        return Problem("is missing", where, key, f"Add {key}: with {keys_of(path)[0]} beneath it.")
    message = f"is missing; it must be {expected(path)}"
    return Problem(message, where, dotted(path), f"Add {key}: … under {'.'.join(sections)}:.")


def _remedy(value: Value, wanted: Expected, key: str) -> str | None:
    """What to write instead, where the value found tells what was meant."""
    takes_text = wanted.takes(str)
    if meant := _meant_null(value, wanted, key):
        return meant
    if isinstance(value, str) and wanted.takes(tuple) and not wanted.choices and not takes_text:
        return "Write a list, even of one, in brackets."
    if isinstance(value, str):
        return _meant_number(value, wanted) or _meant_bool(value, wanted) or _meant_word(value, wanted, key)
    if isinstance(value, int | float):
        return _meant_otherwise(value, wanted, key)
    return None


def _meant_null(value: Value, wanted: Expected, key: str) -> str | None:
    if isinstance(value, str) and wanted.takes(type(None)) and value.lower() in NO_NULL:
        return "Did you mean null?"
    return "Write null for no evaluation." if key == "data.eval" and value in (0, False) else None


def _meant_otherwise(value: float, wanted: Expected, key: str) -> str | None:
    """What a number or a truth value stands for, where it is neither that is wanted."""
    if value is False and "off" in wanted.choices:
        return f"Write {key}: off."
    if wanted.takes(str):
        return "Put it in quotes if it is meant as text."
    if isinstance(value, float) and value.is_integer() and not wanted.takes(float):
        return f"Write {int(value)}."
    return None


def _meant_number(text: str, wanted: Expected) -> str | None:
    kinds = [kind for kind in (int, float) if wanted.takes(kind)]
    number = scalar(re.sub("(?<=[0-9])[_,](?=[0-9]{3})", "", text.strip()))
    if not kinds or isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return f"Write the number without quotes: {number}." if number == scalar(text) else f"Write {number}."


def _meant_bool(text: str, wanted: Expected) -> str | None:
    meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
    word = meant.get(text.lower())
    if word is None or not wanted.takes(bool):
        return None
    quoted = " without quotes" if isinstance(scalar(text), bool) else ""
    return f"Write {word}{quoted}; YAML 1.2 reads {text!r} as text."


def _meant_word(text: str, wanted: Expected, key: str) -> str | None:
    if key == "method" and text.lower() in ("dora", "rslora"):
        return f"Write method: lora and lora.use_{text.lower()}: true."
    ours = answer_to_value(text, wanted.choices)
    if ours is not None:
        return f"Here it is called {ours}."
    if text.lower() in ONLY_NEAR:
        return no_such_value(text, wanted.choices)
    near = get_close_matches(text.lower(), wanted.choices, n=1)
    return f"Did you mean {near[0]}?" if near else None


def _contradictions_beside(wrong: list[KeyPath], document: Document) -> list[ErrorDetails]:
    """Contradictions between values that are right in themselves, though others are wrong.

    The wrong ones are taken out, and what is missing gets a stand-in, so that the schema gets that far.
    """
    try:
        RunConfig.model_validate(_without(wrong, document.values))
    except ValidationError as error:
        taken = {dotted(path[:2]) for path in wrong}
        contradictions = [one for one in error.errors(include_url=False) if one["type"] == "contradiction"]
        return [one for one in contradictions if not taken.intersection(one["ctx"]["keys"])]
    return []


def _without(wrong: list[KeyPath], values: dict[str, Value]) -> dict[str, Value]:
    rest = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name, *inner in wrong:
        section = rest.get(str(name))
        if inner and isinstance(section, dict):
            section.pop(str(inner[0]), None)
        else:
            rest.pop(str(name), None)
    for name, needed in STAND_INS.items():
        section = rest.get(name)
        rest[name] = needed | (section if isinstance(section, dict) else {})
    return rest


def _contradiction(error: ErrorDetails, document: Document) -> Found:
    first = str(error["ctx"]["keys"][0])
    place = document.entry(tuple(first.split("."))).key
    return place, Problem(error["msg"], place.text, first)
