"""The config file: a file and `key=value` overrides become a config, or an error with every problem at its place."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from loraft.config.schedules import ScheduleKwargs
from loraft.config.schema import RunConfig
from loraft.config.schema_info import idle_keys, path_of
from loraft.config.sections import NO_NULL, DataSource, LoraSection, StackLayers
from loraft.config.validation_errors import STAND_INS, refuse, validated
from loraft.config.yaml_nodes import MOST_DEPTH, Found, Node, Place, dotted, in_words, problem_at, read_yaml, scalar
from loraft.errors import ConfigError
from loraft.io.row_types import ends_of_others

BARE = re.compile(r"[\w/.][\w/.@+-]*([: ][\w/.@+-]+)*", re.ASCII)
OTHERS_MISREAD = re.compile(r"(?i)y|n|yes|no|on|off|[-+.]?\d[\d_:.]*|\d{4}-\d\d?-.*|\.+")
"""Text that readers of YAML 1.1 take for a bool, a number or a date."""
TO_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
WIDTH = 100
NO_COMMENT = re.compile("[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What does not stand in a comment as it is."""
Given = ParamSpec("Given")
Result_co = TypeVar("Result_co", covariant=True)
Said = tuple[str, object, str]
"""A dotted key, its value, and why it stands there; where nothing is to be said of it, empty."""


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back equal, a blank line before each section.

    A section or key that method and task do not use is left out where it says nothing of its own.
    """
    lines: list[str] = []
    idle = idle_keys(config)
    for name, field in RunConfig.model_fields.items():
        value = getattr(config, name)
        if name in idle and value == field.default:
            continue
        if isinstance(value, str | int):
            lines.append(f"{name}: {inline(value)}")
            continue
        keys = [key for key in type(value).model_fields if f"{name}.{key}" not in idle or value.said(key)]
        lines += ["", f"{name}:", *(f"  {key}: {inline(getattr(value, key))}" for key in keys)]
    return "\n".join(lines) + "\n"


def inline(value: object) -> str:
    """A value of a config on one line, as short as it can be said: a source that says no more is its path."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], DataSource):
        (value,) = value
    if isinstance(value, DataSource):
        said = value.model_dump(exclude_defaults=True)
        plain = said.keys() == {"path"} and value.path.lower() not in NO_NULL  # which alone would be a slip for null
        value = value.path if plain else said
    elif isinstance(value, StackLayers | ScheduleKwargs):
        value = {name: inner for name, inner in value if inner is not None}
    match value:
        case str():
            return _yaml_text(value)
        case list() | tuple():
            return f"[{', '.join(map(inline, value))}]"
        case dict():
            return f"{{{', '.join(f'{_yaml_text(str(key))}: {inline(inner)}' for key, inner in value.items())}}}"
        case float() if not value.is_integer() or abs(value) >= 1e15:
            # 1e-05 is text to readers of YAML 1.1, 1.0e-05 is a number to all.
            digits = repr(value)
            return digits if "." in digits else digits.replace("e", ".0e")
        case None | bool() | int() | float():
            return json.dumps(int(value) if isinstance(value, float) else value)
        case _:
            raise TypeError(f"a config holds no {type(value).__name__}")


def _yaml_text(text: str) -> str:
    if BARE.fullmatch(text) and isinstance(scalar(text), str) and not OTHERS_MISREAD.fullmatch(text):
        return text
    return TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def commented(said: Iterable[Said]) -> Iterator[str]:
    """The lines of a config: its keys in their order, an empty line before each section."""
    section = ""
    for key, value, why in said:
        name, _, inner = key.rpartition(".")
        if name != section:
            yield from ["", f"{name}:"] if name else [""]
            section = name
        indent = "  " if name else ""
        yield from comment(why, indent)
        yield f"{indent}{inner}: {inline(value)}"


def comment(text: str, indent: str = "", hang: str = "") -> Iterator[str]:
    """A text as lines of a comment; all but the first begin with `hang`."""
    plain = NO_COMMENT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # which could end the comment's line
    lines = textwrap.wrap(
        plain, WIDTH - len(indent) - 2, subsequent_indent=hang, break_on_hyphens=False, break_long_words=False
    )
    yield from (f"{indent}# {line}" for line in lines)


MOST_BYTES = 64 * 1024
DATA = ends_of_others("JSON", "text")
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
    top, found = (
        (None, []) if suffix in DATA else read_yaml(file_text(name, remedy=f"loraft init {name} writes one."), name)
    )
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


class _OfConfig(Protocol[Given, Result_co]):
    def __call__(self, config: RunConfig | Path | str, *args: Given.args, **kwargs: Given.kwargs) -> Result_co: ...


def takes_path(verb: Callable[Concatenate[RunConfig, Given], Result_co]) -> _OfConfig[Given, Result_co]:
    """A function of a config that takes the path of its file as well; its runs are then called by the file."""
    signature = inspect.signature(verb)
    first, *others = signature.parameters.values()

    @functools.wraps(verb)
    def run(config: RunConfig | Path | str, *args: Given.args, **kwargs: Given.kwargs) -> Result_co:
        if isinstance(config, RunConfig):
            return verb(config, *args, **kwargs)
        if not isinstance(config, os.PathLike | str):
            message = f"must be a RunConfig, or the path of its file; found {type(config).__name__}"
            remedy = "Of a dict of values, `loraft.RunConfig.model_validate(values)` makes one."
            raise ConfigError(message, parameter="config", remedy=remedy)
        if "name" in signature.parameters:
            kwargs.setdefault("name", Path(config).stem)
        return verb(load_config(config), *args, **kwargs)

    takes = first.replace(annotation="RunConfig | Path | str")
    vars(run)["__signature__"] = signature.replace(parameters=[takes, *others])  # help() shows it
    return run


def config_of(said: Iterable[Said], name: str) -> RunConfig:
    """The config that these keys come to, as it is read from a file, which is called `name`.

    Raises:
        ConfigError: With everything that is wrong with it, secrets among it.
    """
    top, _ = read_yaml("\n".join(commented(said)), name)
    assert top is not None
    return validated(top)


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


def file_text(name: str, *, remedy: str | None = None) -> str:
    """The characters of a file that is small enough to be a config.

    Raises:
        ConfigError: It cannot be read, is no text or is too large; `remedy` is what to do where it is not there.
    """
    try:
        with Path(name).open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=name, remedy=remedy) from None
    except IsADirectoryError:
        inside = Path(name) / "config.yaml"
        of_run = f"Name the config of the run, {inside}." if inside.is_file() else None
        raise ConfigError("is a folder; a config is a YAML file", where=name, remedy=of_run) from None
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


def read_override(override: str, number: int = 1) -> tuple[tuple[str, ...], Node | None, list[Found]]:
    """The path and the value of the override of this `number`; no value, and what is wrong, where it is none."""
    key, equals, text = override.partition("=")
    path = path_of(key.strip())
    # The value stays out of the place: it may be something that must not be printed.
    name = f"override {key.strip()}{'=…' if equals else ''}"
    place = Place(number, 1, 1, name)
    if not equals or not all(path):
        return path, None, [problem_at(place, "is no key=value", remedy=EXAMPLES)]
    if len(path) > MOST_DEPTH:
        return path, None, [problem_at(place, f"is nested deeper than {MOST_DEPTH} levels")]
    text = f'"{text}"' if text.strip() == "-" else text  # standard input; to YAML it is a list of nothing
    node, found = read_yaml(text, name, dotted(path), number)
    return path, None if found else node, found


def _override(top: Node, override: str, number: int) -> list[Found]:
    """Write an override over the tree; returns what is wrong where it cannot be."""
    path, node, found = read_override(override, number)
    if node is None:
        return found
    nodes = top.content
    assert isinstance(nodes, dict)
    for depth, part in enumerate(path[:-1], start=1):
        section = nodes.setdefault(part, Node({}, node.place, node.place))
        section.content = nodes = {} if section.content is None else section.content
        if not isinstance(nodes, dict):
            obstacle = dotted(path[:depth])
            message = f"cannot be set, as {obstacle} is {in_words(nodes)} in {top.key.text}"
            return [problem_at(node.place, message, dotted(path), f"Override the whole of {obstacle}.")]
    nodes[path[-1]] = node
    return []
