"""A command line of another tool: what is started, and the flags behind it with their values and lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from loraft.config.aliases import name_of
from loraft.config.yaml_nodes import Value, read_yaml, scalar
from loraft.errors import ConfigError

PROGRAMS = ("trl", "python", "python3", "accelerate", "torchrun", "deepspeed", "llamafactory-cli")
STARTS = re.compile(
    rf"^[ \t$]*(?:\w+=\S*[ \t]+)*(?:(?:nohup|exec|time|uv[ \t]+run)[ \t]+)*(?:{'|'.join(PROGRAMS)})[ \t]", re.MULTILINE
)
"""The start of a command, with variables and programs that start it before it or without."""
FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
ASSIGNED = re.compile(r"(?:export[ \t]+)?([A-Za-z_]\w*)=(\S*)")
"""A variable of the shell that gets a value, in which is no space."""
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
OPERATORS = re.compile(r"\|\|?|&&?|;|[\d&]?>{1,2}.*")
"""Words that end a command."""
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
        ConfigError: There are several, a quotation is not closed, or the shell fills in a value.
    """
    found = [(" ".join(word.text for word in words), words) for words in _commands(text, name)]
    variables = _variables(line for line, _ in found)
    commands = [words for line, words in found if STARTS.match(f"{line} ")]
    if len(commands) != 1:
        message = f"holds {len(commands)} commands" if commands else "holds no command that trains"
        raise ConfigError(message, where=name, remedy="Keep the one that trains.")
    words = [Word(_with_values(word.text, variables), word.line) for word in commands[0]]
    words = words[next(number for number, word in enumerate(words) if word.text in PROGRAMS) :]
    start = _start_of_script(words)
    program, script = words[0].text, SCRIPTS.search(words[start].text)
    before = [word for word in words[1:start] if word.text != "-m"]
    launched = next((number for number, word in enumerate(before) if word.text.startswith("-")), len(before))
    flags = dict([*_flags(before[launched:], name), *_flags(words[start + 1 :], name)])
    return CommandLine(PEERS.get(program), script[1] if script else words[start].text.rpartition(".")[2], flags)


def _variables(lines: Iterable[str]) -> Mapping[str, str]:
    """The variables that get one value each; which of two a command would see is not known."""
    values: dict[str, set[str]] = {}
    for line in lines:
        if found := ASSIGNED.fullmatch(line):
            values.setdefault(found[1], set()).add(found[2])
    return {name: each for name, (each, *others) in values.items() if not others}


def _with_values(text: str, variables: Mapping[str, str]) -> str:
    """A word with the values of its variables, which may name others."""
    for _ in variables:
        text = VARIABLE.sub(lambda found: variables.get(found[1] or found[2], found[0]), text)
    return text


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
        for each in found:
            if OPERATORS.fullmatch(each):
                yield words
                words = []
            else:
                words.append(Word(each, number))
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
        unsaid = next((each for each in values if re.search(r"\$[\w{(]|`", each)), None)
        if unsaid is not None:
            remedy = "Write its value in place of it."
            raise ConfigError(f"{unsaid!r} is filled in by the shell", where=where, key=flag[1], remedy=remedy)
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
