"""A command line of another tool: what is started, and the flags behind it with their values and lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from loraft.config.aliases import name_of
from loraft.config.yaml_nodes import Value, read_yaml, scalar
from loraft.errors import ConfigError

STARTS = re.compile(
    r"^[ \t$]*(?:\w+=\S*[ \t]+)*(?:uv[ \t]+run[ \t]+)?"
    r"(?:trl|python3?|accelerate|torchrun|deepspeed|llamafactory-cli)[ \t]",
    re.MULTILINE,
)
"""The start of a command, with variables before it or without."""
FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
SCRIPTS = re.compile(r"(?:^|/)(\w+)\.py$")
YAML_FILE = re.compile(r"(?<!\S)[^\s'\"]+\.ya?ml(?!\S)")


PEERS: dict[str, Literal["trl", "llama-factory"]] = {"trl": "trl", "llamafactory-cli": "llama-factory"}
"""Programs that tell whose command it is; of others the flags do."""


class Word(NamedTuple):
    """A word of a command, and its line."""

    text: str
    line: int


@dataclass(frozen=True)
class ForeignKey:
    """A value, what its key or flag is called in the file, and where it stands."""

    value: Value
    written: str
    where: str


@dataclass(frozen=True)
class CommandLine:
    """What a command starts, and with which flags.

    Attributes:
        peer: Whose command it is, where its program tells.
        script: The subcommand, or the script's name without .py.
        flags: By their names in the tables: small letters and `_`.
    """

    peer: Literal["trl", "llama-factory"] | None
    script: str
    flags: Mapping[str, ForeignKey]


def holds_a_command(text: str) -> bool:
    """Whether a file is a command line, and no YAML."""
    return STARTS.search(text) is not None and re.search(r"(?<!\S)--\w|\.py\b|^[ \t]*trl[ \t]", text) is not None


def import_instead(text: str) -> str | None:
    """What to do with a command that names a YAML file, which is where its keys are; None where it names none."""
    named = YAML_FILE.search(text)
    return f"Import the file that it names, {named[0]}, in place of it." if named else None


def read_command(text: str, name: str) -> CommandLine:
    """The one command of a file called `name`.

    Raises:
        ConfigError: There are several, a quotation is not closed, or a value is a variable of the shell.
    """
    commands = [words for words in _commands(text, name) if STARTS.match(" ".join(word.text for word in words) + " ")]
    if len(commands) != 1:
        message = f"holds {len(commands)} commands" if commands else "holds no command that trains"
        raise ConfigError(message, where=name, remedy="Keep the one that trains.")
    (words,) = commands
    first = next(number for number, word in enumerate(words) if "=" not in word.text and word.text != "$")
    words = words[first:]
    start = _start_of_script(words)
    program, script = words[0].text, SCRIPTS.search(words[start].text)
    before = [word for word in words[1:start] if word.text != "-m"]
    launched = next((number for number, word in enumerate(before) if word.text.startswith("-")), len(before))
    flags = dict([*_flags(before[launched:], name), *_flags(words[start + 1 :], name)])
    return CommandLine(PEERS.get(program), script[1] if script else words[start].text.rpartition(".")[2], flags)


def _commands(text: str, name: str) -> Iterator[list[Word]]:
    """The words of each command; a line that ends in a backslash goes on in the next."""
    words: list[Word] = []
    for number, line in enumerate(text.splitlines(), start=1):
        goes_on = line.rstrip().endswith("\\")
        try:
            found = shlex.split(line.rstrip().removesuffix("\\"), comments=True)
        except ValueError as error:
            remedy = "Write each word, with its quotation marks, on one line."
            raise ConfigError(f"is no command: {error}", where=f"{name}:{number}", remedy=remedy) from None
        words += [Word(each, number) for each in found]
        if not goes_on and words:
            yield words
            words = []
    if words:
        yield words


def _start_of_script(words: list[Word]) -> int:
    """The place of what is started: a script, or a subcommand of the program."""
    scripts = (number for number, word in enumerate(words) if SCRIPTS.search(word.text))
    plain = (number for number, word in enumerate(words) if number and not word.text.startswith("-"))
    return next(chain(scripts, plain), 0)


def _flags(words: list[Word], name: str) -> Iterator[tuple[str, ForeignKey]]:
    number = 0
    while number < len(words):
        word = words[number]
        where = f"{name}:{word.line}"
        number += 1
        flag = FLAG.fullmatch(word.text)
        if flag is None:
            remedy = import_instead(word.text) or "Write the flag that it belongs to before it."
            raise ConfigError(f"{word.text!r} stands behind no flag", where=where, remedy=remedy)
        values = [] if flag[2] is None else [flag[2]]
        while flag[2] is None and number < len(words) and not FLAG.fullmatch(words[number].text):
            values.append(words[number].text)
            number += 1
        unsaid = next((each for each in values if re.search(r"\$\w|\$\{", each)), None)
        if unsaid is not None:
            remedy = "Write its value in place of it."
            raise ConfigError(f"{unsaid!r} is a variable of the shell", where=where, key=flag[1], remedy=remedy)
        yield _flag(flag[1], [_value(each, where) for each in values], where)


def _value(text: str, where: str) -> Value:
    """A word as YAML reads it: `{"min_lr_rate": 0.1}` is a mapping."""
    if not text.startswith(("{", "[")):
        return scalar(text)
    node, wrong = read_yaml(text, where)
    if node is None or wrong:
        raise ConfigError(f"{text!r} is neither JSON nor YAML", where=where)
    return node.value


def _flag(name: str, values: list[Value], where: str) -> tuple[str, ForeignKey]:
    # argparse makes two flags of a truth value: --packing and --no_packing.
    off = None if values else re.fullmatch(r"no[_-](.*)", name)
    value = values if len(values) > 1 else values[0] if values else not off
    return name_of(off[1] if off else name), ForeignKey(value, f"--{name}", where)
