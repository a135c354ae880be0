"""What the schema finds wrong, as problems with a place, a key and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loraft.config.aliases import BOOLS, ONLY_NEAR, answer_to_key, answer_to_value, no_such_value
from loraft.config.schema import RunConfig
from loraft.config.schema_info import KEYS, Expected, expected, keys_of, places_of
from loraft.config.sections import NO_NULL
from loraft.config.yaml_nodes import MOST_PROBLEMS, Found, KeyPath, Node, Value, dotted, in_words, problem_at, scalar
from loraft.errors import ConfigError, Problem
from loraft.io.secrets import redacted_problem, secret_in

STAND_INS: dict[str, dict[str, Value]] = {"model": {"name_or_path": "?"}, "data": {"train": "?"}}
"""What must be there, for a second look at a config that lacks it."""
KEYS_IN_A_SOURCE = {"type": "format", "ds_type": "format", "field": "columns"}


def validated(top: Node, found: Sequence[Found] = ()) -> RunConfig:
    """The config that a tree holds, where nothing was `found` wrong with it before.

    Raises:
        ConfigError: With everything that is wrong, in the order of the file, overrides last.
    """
    if secrets := list(_secrets(top, ())):
        refuse([*found, *secrets])  # what else is wrong might be told with the value
    try:
        config = RunConfig.model_validate(top.value)
    except ValidationError as error:
        known = {place for place, _ in found}
        more = [one for one in _problems(error.errors(include_url=False), top) if one[0] not in known]
        refuse([*found, *more])
    if found:
        refuse(found)
    return config


def _secrets(node: Node, path: KeyPath) -> Iterator[Found]:
    """A problem for each text that holds a secret: a config is written into the folder of its run, and handed on."""
    texts = [node.content] if isinstance(node.content, str) else []
    inner: Iterable[tuple[str | int, Node]] = ()
    if isinstance(node.content, dict):
        inner = node.content.items()
        texts = [key for key in node.content if secret_in(key)]
        inner = [(key, each) for key, each in inner if key not in texts]
    elif isinstance(node.content, list):
        inner = enumerate(node.content)
    for kind in filter(None, map(secret_in, texts)):
        message = f"holds {kind}, and a config is written into the folder of its run"
        remedy = "Take it out: tokens are taken from the environment (HF_TOKEN, WANDB_API_KEY) or from `hf auth login`."
        yield problem_at(node.place, message, dotted(path) or None, remedy)
    for part, each in inner:
        yield from _secrets(each, (*path, part))


def refuse(found: Iterable[Found]) -> NoReturn:
    """Raise the problems in the order of their places, `MOST_PROBLEMS` of them at most, without secrets."""
    problems = [problem for _, problem in sorted(found, key=lambda one: one[0])]
    if left_out := len(problems[MOST_PROBLEMS:]):
        problems[MOST_PROBLEMS:] = [Problem(f"and {left_out} more problems")]
    raise ConfigError.several(map(redacted_problem, problems))


def _problems(errors: list[ErrorDetails], top: Node) -> list[Found]:
    """One problem for each place; where branches of a union disagree, what lies deepest tells most."""
    located = {path: error for error in errors if (path := _path(error, top))}
    outer = {path[:length] for path in located for length in range(1, len(path))}
    innermost = {path: error for path, error in located.items() if path not in outer}
    ordered = sorted(innermost, key=lambda path: top.near(path).key)
    told = {path: _problem(path, innermost[path], top) for path in ordered[:MOST_PROBLEMS]}
    remedies = [problem.remedy or "" for _, problem in told.values()]
    # What is missing is told already where the remedy for a key of another tool says how to write it.
    asked = {f"Write {name}.{key}: ": name for name, needed in STAND_INS.items() for key in needed}
    said = {name for start, name in asked.items() if any(remedy.startswith(start) for remedy in remedies)}
    found = [one for path, one in told.items() if innermost[path]["type"] != "missing" or path[0] not in said]
    found += [problem_at(top.near(path).key, "is wrong") for path in ordered[MOST_PROBLEMS:]]  # no more than counted
    contradictions = [error for error in errors if error["type"] == "contradiction"]
    if innermost and not contradictions:
        contradictions = _contradictions_beside([*innermost], top)
    for error in contradictions:
        key = str(error["ctx"]["keys"][0])
        found.append(problem_at(top.near(tuple(key.split("."))).key, error["msg"], key))
    return found


def _path(error: ErrorDetails, top: Node) -> KeyPath:
    """The path in the tree, without the names that pydantic gives to branches of a union."""
    path: KeyPath = ()
    node = top
    for number, part in enumerate(error["loc"], start=1):
        inner = node.child(part)
        if inner is not None or (error["type"] == "missing" and number == len(error["loc"])):
            path, node = (*path, part), inner or node
    return path


def _contradictions_beside(wrong: list[KeyPath], top: Node) -> list[ErrorDetails]:
    """Contradictions between values that are right in themselves, though others are wrong.

    The wrong ones are taken out, and what is missing gets a stand-in, so that the schema gets that far.
    """
    values = top.value
    assert isinstance(values, dict)
    for name, *inner in wrong:
        section = values.get(str(name))
        if inner and isinstance(section, dict):
            section.pop(str(inner[0]), None)
        else:
            values.pop(str(name), None)
    for name, needed in STAND_INS.items():
        section = values.get(name)
        values[name] = needed | (section if isinstance(section, dict) else {})
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        taken = {dotted(path[:2]) for path in wrong}
        contradictions = [one for one in error.errors(include_url=False) if one["type"] == "contradiction"]
        return [one for one in contradictions if not taken.intersection(one["ctx"]["keys"])]
    return []


def _problem(path: KeyPath, error: ErrorDetails, top: Node) -> Found:
    node, wanted, key = top.near(path), expected(path), dotted(path)
    value = node.value
    if error["type"] == "missing":
        return problem_at(node.key, *_missing(path))
    if value is None and ":" in (name := str(path[-1])):  # in braces {prompt:text} is one word
        written = name.replace(":", ": ", 1)
        return problem_at(node.key, "has no value", key, f"Write {written}, with a space after the colon.")
    if wanted is None:
        return problem_at(node.key, "is no key of loraft", key, advice_for_key(path, value))
    if len(path) == 1 and keys_of(path) and not isinstance(value, dict):
        return problem_at(node.place, *_no_section(key, value, keys_of(path)))
    if error["type"] == "value_error":
        message, remedy = error["msg"].removeprefix("Value error, "), None
    else:
        message, remedy = f"must be {wanted}", _remedy(value, wanted, key)
    return problem_at(node.place, f"{message}; found {in_words(value)}", key, remedy)


def _missing(path: KeyPath) -> tuple[str, str, str]:
    *sections, key = (str(part) for part in path if isinstance(part, str))
    if not sections and keys_of(path):
        return "is missing", key, f"Add {key}: with {keys_of(path)[0]} beneath it."
    return f"is missing; it must be {expected(path)}", dotted(path), f"Add {key}: … under {'.'.join(sections)}:."


def _no_section(key: str, value: Value, known: Sequence[str]) -> tuple[str, str, str]:
    if value is None:
        return "is an empty section", key, f"Indent its keys beneath it, or remove {key}."
    is_meant = key in STAND_INS and isinstance(value, str)
    shown = f" For this one, write {key}.{known[0]}: {value}." if is_meant else ""
    message = f"must be a section, with its keys indented beneath it; found {in_words(value)}"
    return message, key, f"Its keys are {', '.join(known)}.{shown}"


def _remedy(value: Value, wanted: Expected, key: str) -> str | None:
    """What to write instead, where the value found tells what was meant."""
    if isinstance(value, str):
        if wanted.takes(type(None)) and value.lower() in NO_NULL:
            return "Did you mean null?"
        if wanted.takes(tuple) and not wanted.choices and not wanted.takes(str):
            return "Write a list, even of one, in brackets."
        return _meant_number(value, wanted) or _meant_bool(value, wanted) or _meant_word(value, wanted, key)
    return _meant_otherwise(value, wanted, key) if isinstance(value, int | float) else None


def _meant_otherwise(value: float, wanted: Expected, key: str) -> str | None:
    """What a number or a truth value stands for, where it is neither that is wanted."""
    if key == "data.eval" and not value:
        return "Write null for no evaluation."
    if value is False and "off" in wanted.choices:
        return f"Write {key}: off."
    if key == "lora.layers" and type(value) is int and value > 0:
        return f"Write [{value}] for that layer, or last:{value} for so many."
    if wanted.takes(str):
        return "Put it in quotes if it is meant as text."
    is_whole = isinstance(value, float) and value.is_integer() and not wanted.takes(float)
    return f"Write {int(value)}." if is_whole else None


def _meant_number(text: str, wanted: Expected) -> str | None:
    number = scalar(re.sub("(?<=[0-9])[_,](?=[0-9]{3})", "", text.strip()))
    if not (wanted.takes(int) or wanted.takes(float)) or isinstance(number, str | bool | None):
        return None
    return f"Write the number without quotes: {number}." if number == scalar(text) else f"Write {number}."


def _meant_bool(text: str, wanted: Expected) -> str | None:
    word = BOOLS.get(text.lower())
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
    if wanted.choices and text.lower() in ONLY_NEAR:
        return no_such_value(text, wanted.choices)
    near = get_close_matches(text.lower(), wanted.choices, n=1)
    return f"Did you mean {near[0]}?" if near else None


def advice_for_key(path: KeyPath, value: Value) -> str:
    """The remedy for an unknown key: another tool's name, a near miss, another level, or what there is."""
    section, key = path[:-1], str(path[-1])
    nested = tuple(key.split("."))
    if len(nested) == 2 and not section and expected(nested) is not None:
        return f"Keys are nested: write {nested[0]}: and, indented beneath it, {nested[1]}."
    if len(section) > 1 and key in KEYS_IN_A_SOURCE:
        return f"Write {KEYS_IN_A_SOURCE[key]}."
    if foreign := answer_to_key(key, value):
        return foreign
    here = {dotted((*section, known)): known for known in keys_of(section)}
    if near := _did_you_mean(here, key):
        return near
    if places := places_of(key):
        return f"It belongs to another level: write {' or '.join(places)}."
    return (
        _did_you_mean({known: known.rpartition(".")[2] for known in KEYS}, key)
        or f"Known keys {'in ' + dotted(section) if section else 'at the top'}: {', '.join(here.values())}."
    )


def _did_you_mean(known: dict[str, str], key: str) -> str | None:
    """Names that are spelt alike, or that hold all the words of `key`: `batch_size` in `per_device_…`."""
    spelt = key.replace("-", "_").lower()
    alike = get_close_matches(spelt, known.values(), n=3, cutoff=0.75)
    words = set(spelt.split("_"))
    near = alike or [name for name in known.values() if words <= set(name.split("_"))]
    found = [place for place, name in known.items() if name in near]
    return f"Did you mean {' or '.join(found)}?" if found else None
