"""The config file: a file and `key=value` overrides become a config, or an error with every problem at its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraft.config.schema import RunConfig
from loraft.config.schema_info import path_of
from loraft.config.sections import LoraSection
from loraft.config.validation_errors import STAND_INS, refuse, validated
from loraft.config.yaml_nodes import MOST_DEPTH, Found, Node, Place, dotted, in_words, problem_at, read_yaml
from loraft.errors import ConfigError

MOST_BYTES = 64 * 1024
DATA = (".csv", ".jsonl", ".parquet")
"""How files of rows end, and no config does."""
EXAMPLES = "Write an override as training.max_steps=100 or lora.target_modules=[q_proj,v_proj]."


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, with `key=value` overrides written over it.

    Args:
        path: The YAML file, of at most 64 KiB.
        overrides: Texts such as `training.max_steps=100`; of two for the same key the later one counts.

    Raises:
        ConfigError: With every problem of the file and of the overrides, each with its place.
    """
    name, suffix = str(path), Path(path).suffix.lower()
    top, found = (None, []) if suffix in DATA else read_yaml(_text(name), name)
    if suffix in DATA or (suffix == ".json" and top is not None and isinstance(top.content, list)):
        remedy = "Name it as data.train in a config: loraft init writes one."
        raise ConfigError("is data, not a config", where=name, remedy=remedy)
    if top is None:
        refuse(found)
    if top.content is None:
        raise ConfigError("is empty: a config needs at least model.name_or_path and data.train", where=name)
    if not isinstance(top.content, dict):
        raise ConfigError(f"must hold a mapping of keys to values; found {in_words(top.content)}", where=name)
    return _with_overrides(top, found, overrides)


def load_lora(text: str) -> LoraSection:
    """The `lora` section that a text such as `r=8,target_modules=[q_proj,v_proj],layers=last:4` says.

    Raises:
        ConfigError: With every problem; the rules are those of a config.
    """
    parts = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]
    if unsaid := [part for part in parts if "=" not in part]:
        remedy = "Write it as r=8,target_modules=[q_proj,v_proj],layers=last:4, or name a config."
        raise ConfigError(f"{unsaid[0]!r} is no key=value", parameter="lora", remedy=remedy)
    top, _ = read_yaml(str(STAND_INS), "lora")  # a dict of texts is YAML as Python prints it
    assert top is not None
    try:
        return _with_overrides(top, [], [f"lora.{part}" for part in parts]).lora
    except ConfigError as error:
        raise ConfigError.several(
            replace(problem, where=None, parameter="lora") for problem in error.problems
        ) from None


def _text(name: str) -> str:
    """The characters of a file that is small enough."""
    try:
        with Path(name).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=name, remedy=f"loraft init {name} writes one.") from None
    except IsADirectoryError:
        raise ConfigError("is a folder; a config is a YAML file", where=name) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot be read: {reason}", where=name) from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"is larger than {MOST_BYTES // 1024} KiB, and so no config", where=name)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"is not valid UTF-8 (byte 0x{raw[error.start]:02x})"
        raise ConfigError(message, where=f"{name}:{line}", remedy="Save it as UTF-8.") from None


def _with_overrides(top: Node, found: Sequence[Found], overrides: Sequence[str]) -> RunConfig:
    wrong = [one for number, override in enumerate(overrides, start=1) for one in _override(top, override, number)]
    return validated(top, [*found, *wrong])


def _override(top: Node, override: str, number: int) -> list[Found]:
    """Write an override over the tree; returns what is wrong where it cannot be."""
    key, equals, text = override.partition("=")
    path = path_of(key.strip())
    # The value stays out of the place: it may be something that must not be printed.
    name = f"override {dotted(path)}{'=…' if equals else ''}"
    place = Place(number, 1, 1, name)
    if not equals or not all(path):
        return [problem_at(place, "is no key=value", remedy=EXAMPLES)]
    if len(path) > MOST_DEPTH:
        return [problem_at(place, f"is nested deeper than {MOST_DEPTH} levels")]
    node, found = read_yaml(text, name, dotted(path), number)
    if node is None or found:
        return found
    nodes = top.content
    assert isinstance(nodes, dict)
    for depth, part in enumerate(path[:-1], start=1):
        section = nodes.setdefault(part, Node({}, place, place))
        section.content = nodes = {} if section.content is None else section.content
        if not isinstance(nodes, dict):
            obstacle = dotted(path[:depth])
            message = f"cannot be set, as {obstacle} is {in_words(nodes)} in {top.key.text}"
            return [problem_at(place, message, dotted(path), f"Override the whole of {obstacle}.")]
    nodes[path[-1]] = node
    return []
