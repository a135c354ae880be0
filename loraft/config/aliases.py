"""What other tools call our keys and values, and what to write here instead: the tables are in aliases.toml."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraft.config.choices import TaskName
from loraft.config.schema_info import KEYS
from loraft.config.yaml_nodes import Value

Answer = str | list[str] | Mapping[str, str]
"""A remedy; that where a key is switched on and that where it is off; or those for some words, * being any other."""
BOOLS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
"""Words that mean a truth value, of which some are text in YAML 1.2."""
BY_PAIRS: TaskName = "preference"
"""The task that DPO and its like are here."""
LEAVE = "Leave it out: "
"""How a remedy begins that is a reason why nothing is written."""
WRITE = "Write "
"""How a remedy begins whose keys and values, in backticks, are to be written."""
WRITTEN = re.compile(r"`([a-z]+(?:\.[a-z_0-9]+)?): ([^`]+)`")
"""A key with its value in such a remedy."""
_TABLES: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    Path(__file__).with_name("aliases.toml").read_text(encoding="utf-8")
)


def _by_theirs(table: str) -> dict[str, str]:
    """A table of what stands here for words of other tools, by each of these."""
    return {word: ours for ours, theirs in _TABLES[table].items() for word in theirs.split()}


SAME_VALUE: Mapping[str, str] = _by_theirs("same_value")
"""Keys of other tools that take the values of a key here."""
LEFT_OUT: Mapping[str, str] = _by_theirs("left_out")
"""Keys of other tools that need no answer of their own, and why."""
ANSWERS: Mapping[str, Answer] = {
    **{name: answer for names, answer in _TABLES["answers"].items() for name in names.split()},
    **_by_theirs("not_here"),
    **{name: f"{LEAVE}{why}." for name, why in LEFT_OUT.items()},
}
"""Keys of other tools whose value reads differently here, or that have none, with the remedy."""
VALUES: Mapping[str, str] = _by_theirs("values")
"""Words of other tools for the same thing."""
COMMANDS_ELSEWHERE: Mapping[str, str] = _by_theirs("commands")
"""What other tools call our commands."""
ONLY_NEAR: Mapping[str, list[str]] = _TABLES["only_near"]
"""Words of other tools for what is not here, with what stands nearest and in what it differs."""


def _bare(value: Value) -> str:
    """A value as YAML reads it back, with text left bare."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _targets(value: Value) -> str:
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip() for word in words]
    return "all-linear" if names in (["all"], ["all-linear"]) else f"[{', '.join(names)}]"


def _paths(value: Value) -> str:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    named = [part.get("path") if isinstance(part, dict) else part for part in parts]
    names = [name.strip() for name in named if isinstance(name, str)]
    if not names or len(names) < len(parts):
        return "a path, a Hub id, or a list of {path, split, weight, format, columns}"
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _share(value: Value) -> str:
    if not value:
        return "null"
    is_share = isinstance(value, float) and value < 1
    return _bare(value) if is_share else "the fraction of the rows to hold out, such as 0.05"


FILLED_IN = {"{value}": _bare, "{targets}": _targets, "{paths}": _paths, "{share}": _share}


def name_of(key: str) -> str:
    """A key as the tables have it."""
    return key.replace("-", "_").lower()


def remedy_for(key: str, value: Value) -> str | None:
    """The remedy of `ANSWERS` for `key: value`, in which what is to be written is in backticks; None where none is."""
    answer = ANSWERS.get(name_of(key))
    if answer is None:
        return None
    if isinstance(answer, list):
        answer = answer[0 if value and BOOLS.get(str(value).lower()) != "false" else 1]
    elif isinstance(answer, Mapping):
        # A name such as bnb.nf4 is its last part.
        word = str(value).lower().rpartition(".")[2] if value or value is False else "none"
        meant = BOOLS.get(word, word)
        answer = next((remedy for words, remedy in answer.items() if meant in words.split()), answer["*"])
    return re.sub("|".join(FILLED_IN), lambda found: FILLED_IN[found[0]](value), answer)


def answer_to_key(key: str, value: Value) -> str | None:
    """What to write instead of another tool's `key: value`; None where no tool that we know has the key."""
    remedy = remedy_for(key, value)
    if remedy is not None:
        return WRITTEN.sub(r"\1: \2", remedy)
    ours = SAME_VALUE.get(name_of(key))
    if ours is None:
        return None
    if isinstance(value, dict | list):
        return f"Write {ours}."
    wanted = KEYS[ours]
    if same := answer_to_value(str(value), wanted.choices):
        return f"Write {ours}: {same}."
    if isinstance(value, str) and wanted.choices and value not in wanted.choices and not wanted.takes(str):
        return no_such_value(value, wanted.choices, f"{ours} is ")
    return f"Write {ours}: {_bare(value)}."


def answer_to_value(value: str, choices: tuple[str, ...]) -> str | None:
    """Which of `choices` another tool calls `value`; None where it is no name that we know."""
    ours = VALUES.get(value.lower())
    return ours if ours in choices else None


def no_such_value(value: str, choices: tuple[str, ...], ours: str = "") -> str:
    """What to say of a value that is nothing here; what stands nearest makes another run, and is told with that."""
    near, difference = ONLY_NEAR.get(value.lower(), ("", ""))
    if near not in choices:
        return f"There is no {value} here: {ours}{', '.join(choices[:-1])} or {choices[-1]}."
    return f"There is no {value} here: {ours}{near} at the nearest, and {difference}."
