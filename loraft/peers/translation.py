"""What became of each key of another tool's file: the keys of a config that it is written as, or why it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NoReturn

from loraft.config.aliases import (
    BOOLS,
    LEAVE,
    ONLY_NEAR,
    SAME_VALUE,
    WRITE,
    WRITTEN,
    answer_to_value,
    name_of,
    remedy_for,
)
from loraft.config.choices import RowFormat
from loraft.config.schema_info import KEYS, Expected, places_of
from loraft.config.yaml_nodes import Value, read_yaml, scalar
from loraft.errors import ConfigError
from loraft.io.secrets import redacted
from loraft.peers.command_line import ForeignKey
from loraft.peers.foreign_file import NAMES, ForeignFile

SECRET = "A config holds no secret"
"""How the remedy begins for a key whose value is neither printed nor written."""
HIDDEN = "…"
NOTHING: Mapping[str, Value] = MappingProxyType({})
NO_ADAPTER = "method: full trains every weight, and has no adapter"
NO_PAIRS = "it is of pairs of answers, and the rows are examples"
NOT_QUANTIZED = "nothing is quantized without method: qlora"
SAYS_MORE = ("activation_offloading", "cosine_min_lr_ratio", "use_muon")
"""Keys that change what another key asks for."""


@dataclass(frozen=True)
class TranslatedKey:
    """What became of a key.

    Attributes:
        key: As the file has it; empty where it is what the tool does of itself, with nothing said.
        value: What the file says.
        becomes: The keys of the config, dotted, with their values; empty where nothing is written.
        why: Why nothing is written, or in what it differs; empty where there is nothing to say.
        where: The place in the file.
        known: Whether the key is answered at all.
    """

    key: str
    value: Value
    becomes: Mapping[str, Value]
    why: str
    where: str
    known: bool


class Translation:
    """The keys of a file that are still to be translated, and what became of the others."""

    def __init__(self, file: ForeignFile) -> None:
        self.file, self.peer, self.tool = file, file.peer, NAMES[file.peer]
        self.rows: list[TranslatedKey] = []
        self._left = dict(file.keys)
        self._of_itself: list[tuple[Mapping[str, Value], str]] = []
        self.method: str = "lora"
        self.loss: str | None = None

    @property
    def compares(self) -> bool:
        """Whether it is learned which answers are better."""
        return self.loss is not None

    @property
    def compared_as(self) -> RowFormat:
        """The format of rows whose answers are compared."""
        return "unpaired" if self.loss == "kto" else "preferences"

    def value(self, *names: str) -> Value:
        """What the file says under the first of `names` that says something; None where none does."""
        return next((key.value for name in names if (key := self.file.keys.get(name)) and key.value is not None), None)

    def number(self, *names: str) -> float | None:
        """The same where it is a finite number, in quotes or without."""
        value = self.value(*names)
        try:
            number = math.nan if value is None or isinstance(value, bool | list | dict) else float(value)
        except (ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def is_open(self, name: str) -> bool:
        """Whether the file has the key, and nothing became of it yet."""
        return name in self._left

    def write(self, name: str, becomes: Mapping[str, Value], why: str = "") -> None:
        """The key `name`, if the file has it, is written as `becomes`."""
        if (key := self._left.pop(name, None)) is not None:
            self._add(key, becomes, why)

    def leave(self, name: str, why: str) -> None:
        """The key `name`, if the file has it, is not written, and why."""
        if (key := self._left.pop(name, None)) is not None:
            self._tell(key, why)

    def of_itself(self, becomes: Mapping[str, Value], why: str = "") -> None:
        """What the tool does where its file says nothing, and loraft otherwise; of two the first one counts."""
        self._of_itself.append((becomes, why or f"{self.tool}'s default"))

    def finished(self) -> list[TranslatedKey]:
        """What became of every key, of the rest by the table, and behind that what the tool does of itself."""
        self.by_table()
        self.rows = _agreed(self.rows)
        for becomes, why in self._of_itself:
            said = {ours for row in self.rows for ours in row.becomes}
            unsaid = {ours: value for ours, value in becomes.items() if ours not in said}
            if unsaid:
                self._add(ForeignKey(None, "", ""), unsaid, why)
        return self.rows

    def detail(self, name: str, key: str, value: Value, why: str) -> None:
        """A part of the key `name`, such as the type of one of its datasets, of which nothing is written."""
        self._tell(ForeignKey(value, key, self.file.keys[name].where), why)

    def refuse(self, name: str, why: str, remedy: str | None = None) -> NoReturn:
        """The key `name` asks for a training that loraft does not have: no config would be that run.

        Raises:
            ConfigError: With the place of the key.
        """
        key = self.file.keys[name]
        raise ConfigError(redacted(why), where=key.where, key=key.written, remedy=remedy)

    def refuse_by_table(self, name: str) -> None:
        """Refuse the key `name` where the table says that there is no such training here.

        Raises:
            ConfigError: That is so.
        """
        value = self.value(name)
        remedy = remedy_for(name, value) or ""
        if value not in (None, False) and remedy.startswith("There is no"):
            self.refuse(name, remedy[0].lower() + remedy[1:].rstrip("."))

    def by_table(self, *names: str) -> None:
        """Translate these keys, or all that are left, by the table of what other tools call ours."""
        for name in names or tuple(self._left):
            key = self._left.pop(name, None)
            if key is not None:
                self._by_table(name, key)

    def _by_table(self, name: str, key: ForeignKey) -> None:
        ours = _key_of(name)
        remedy = remedy_for(name, key.value)
        if key.value is None:
            self._tell(key, "", known=bool(ours or remedy))
        elif remedy is not None:
            self._by_remedy(key, remedy)
        elif ours is not None:
            value, difference = ours_of(_fitting(key.value, KEYS[ours]), KEYS[ours].choices)
            self._add(key, {ours: value}, difference)
        else:
            self._tell(key, f"no key that loraft knows of {self.tool}", known=False)

    def _by_remedy(self, key: ForeignKey, remedy: str) -> None:
        becomes = {ours: _read(text) for ours, text in WRITTEN.findall(remedy)} if remedy.startswith(WRITE) else {}
        if becomes:
            rest = remedy[remedy.rindex("`") + 1 :].strip(" .")
            says_nothing = rest.startswith(("(", "at the top"))
            self._add(key, becomes, "" if says_nothing else rest.lstrip(",;: ").removeprefix("which "))
        else:
            told = replace(key, value=HIDDEN) if remedy.startswith(SECRET) else key
            self._tell(told, remedy.removeprefix(LEAVE).removesuffix("."))

    def _add(self, key: ForeignKey, becomes: Mapping[str, Value], why: str) -> None:
        idle = {ours: reason for ours in becomes if (reason := self._idle(ours))}
        if idle and key.written:
            self._tell(key, next(iter(idle.values())))
        elif used := {ours: as_whole(value) for ours, value in becomes.items() if ours not in idle}:
            self._tell(key, why, used)

    def _tell(self, key: ForeignKey, why: str, becomes: Mapping[str, Value] = NOTHING, *, known: bool = True) -> None:
        self.rows.append(TranslatedKey(key.written, key.value, becomes, why, key.where, known))

    def _idle(self, ours: str) -> str | None:
        """Why a key of the config would have nothing to do; None where it has."""
        if ours.startswith("lora.") and self.method == "full":
            return NO_ADAPTER
        if ours.startswith("quantization.") and self.method != "qlora":
            return NOT_QUANTIZED
        return NO_PAIRS if ours.startswith("preference.") and not self.compares else None


def _agreed(rows: Sequence[TranslatedKey]) -> list[TranslatedKey]:
    """The rows where each key of the config has one value.

    Of several keys that ask for different ones a key that is switched on counts before one that is off, and of two the
    later one.
    """
    asked: dict[str, TranslatedKey] = {}
    for row in sorted(rows, key=_weight):
        asked |= dict.fromkeys(row.becomes, row)
    found = []
    for row in rows:
        kept = {ours: value for ours, value in row.becomes.items() if asked[ours].becomes[ours] == value}
        others = [asked[ours].key for ours in row.becomes if ours not in kept]
        found.append(replace(row, becomes=kept, why=row.why if kept else f"{others[0]} says it") if others else row)
    return found


def _weight(row: TranslatedKey) -> tuple[bool, bool]:
    is_on = BOOLS.get(str(row.value).lower()) != "false"
    return is_on and name_of(row.key.lstrip("-")) in SAYS_MORE, is_on


def ours_of(value: Value, choices: tuple[str, ...]) -> tuple[Value, str]:
    """A value in our words, and in what it differs where nothing here is the same."""
    if not isinstance(value, str) or value in choices:
        return value, ""
    same = answer_to_value(value, choices)
    if same is not None:
        return same, ""
    near, difference = ONLY_NEAR.get(value.lower(), ("", ""))
    return (near, f"the nearest: {difference}") if near in choices else (value, "")


def _key_of(name: str) -> str | None:
    """The key here that takes the values of a key elsewhere: by the table, or as it is called the same."""
    found = SAME_VALUE.get(name) or next(iter(places_of(name)), None)
    is_section = found is not None and "." not in found and KEYS[found].section is not None
    return None if is_section else found


def as_whole(value: Value) -> Value:
    """A value whose whole numbers have no point: 3.0 rows are 3."""
    if isinstance(value, dict):
        return {key: as_whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fitting(value: Value, wanted: Expected) -> Value:
    """A number that stands in quotes, or a list with commas between its texts, where one is wanted."""
    if not isinstance(value, str) or wanted.takes(str):
        return value
    if wanted.takes(tuple) and not wanted.choices:
        return [each.strip() for each in value.split(",") if each.strip()]
    number = scalar(value.strip()) if wanted.takes(int) or wanted.takes(float) else value
    return value if isinstance(number, bool | str) else number


def _read(text: str) -> Value:
    node, _ = read_yaml(text, "the table")
    return None if node is None else node.value
