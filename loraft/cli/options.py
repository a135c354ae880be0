"""The options that commands share, in groups: a command takes a group as one parameter, and typer each field of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraft.config.choices import DtypeName, QuantizationType, RowFormat
from loraft.errors import ConfigError
from loraft.inference.requests import GenerationRequest, ModelRequest

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSource


def argument(metavar: str, text: str, **default: Any) -> Any:
    """A field that is an argument, which must be given where it has no default."""
    return field(metadata={"names": None, "typer": partial(typer.Argument, metavar=metavar, help=text)}, **default)


def option(metavar: str | None, text: str, *names: str, default: Any = None, **rules: Any) -> Any:
    """A field that is an option, called as the field is where no names are given; `rules` are typer's min and such."""
    made = partial(typer.Option, metavar=metavar, help=text, **rules)
    return field(default=default, metadata={"names": names, "typer": made})


def flag(text: str, *names: str) -> Any:
    """A field that is an option without a value."""
    return option(None, text, *names, default=False)


def refuse(*contradictions: tuple[object, str]) -> None:
    """Refuse a command line by the first of these that is so."""
    for is_so, why in contradictions:
        if is_so:
            raise typer.BadParameter(why)


def _must(holds: Callable[[Any], bool], otherwise: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        refuse((value is not None and not holds(value), otherwise.format(value)))
        return value

    return checked


def size_in_bytes(text: str) -> int:
    """The bytes of a size such as 24GB or 24GiB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    refuse((size < 10**6, f"{text} is no memory of a GPU: write a size such as 24GB or 24GiB."))
    return size


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_in_seconds(text: str) -> float:
    """The seconds of a duration such as 90s, 30m, 2h or 1d."""
    number, unit = text[:-1], SECONDS.get(text[-1:])
    seconds = float(number) * unit if unit is not None and number.replace(".", "", 1).isdigit() else 0.0
    refuse((seconds <= 0, f"{text} is no duration: write one such as 90s, 30m or 2h."))
    return seconds


def _told_of_trust(trusted: bool) -> bool:
    if trusted:
        from loraft.cli.console import print_note

        print_note("--trust-remote-code: what code the model brings runs here, with all that you may do")
    return trusted


SHARE = _must(lambda share: 0 < share <= 1, "{} is not above 0 and at most 1.")
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")
]


def trust_flag() -> Any:
    """The field `trust_remote_code`, which says so when it is on: no other way switches it on."""
    said = "Run the code that the model brings (auto_map in its config.json), with all that you may do here."
    return option(None, said, default=False, callback=_told_of_trust)


@dataclass(frozen=True)
class ConfigOptions:
    """A config and what replaces values of it."""

    config: str = argument("CONFIG", "The YAML file of the run.")
    overrides: list[str] | None = argument(
        "KEY=VALUE", "Values that replace those of the file, such as training.max_steps=50.", default=None
    )

    trust_remote_code: bool = trust_flag()

    @property
    def name(self) -> str:
        """What the run is called."""
        return Path(self.config).stem

    def beside(self, ending: str, replaces: Callable[[Path], bool]) -> Path:
        """Where a config lies that is made of this one: `run-fit.yaml` beside `run.yaml`.

        Raises:
            ConfigError: Something is there that it does not replace, or nothing can be written there.
        """
        path = Path(self.config)
        written = path.with_name(f"{path.stem}-{ending}{path.suffix}")
        if written.is_dir() or (written.exists() and not replaces(written)):
            raise ConfigError("is there already", where=written, remedy="Remove it, or give it another name.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            remedy = "Copy the config into a folder that you may write to."
            raise ConfigError("cannot be written", where=written, remedy=remedy)
        return written

    def changed(self, values: Mapping[str, object]) -> str:
        """The text of the config with its overrides and these values."""
        from loraft.config.change_config import changed_text

        return changed_text(Path(self.config), self.overrides or [], values)

    def load(self) -> RunConfig:
        """The config with its overrides."""
        from loraft.config.config_file import load_config

        return load_config(Path(self.config), self.overrides or [])

    def read(self, *, by_every_method: bool = False) -> RunConfig:
        """The config with its overrides; says which of its sections and keys the method and the task leave unused.

        Where it is run by every method, what one of them leaves unused is nothing to tell.
        """
        from loraft.cli.console import print_note
        from loraft.config.schema_info import unused_keys
        from loraft.io.sealed import is_text_as_sealed

        config = self.load()
        if not is_text_as_sealed(Path(self.config)):
            print_note(f"{self.config} was edited or damaged since a run wrote it: what it says now is used")
        unused = [(key, by) for key, by in unused_keys(config) if not (by_every_method and by.startswith("method:"))]
        print_note(*(f"{key} is not used by {by}" for key, by in unused))
        return config


@dataclass(frozen=True)
class AnswerOptions:
    """What answers, and how; a command takes those of its fields that matter to it."""

    target: str | None = argument(
        "TARGET",
        "A base model (Hub id, folder, .gguf, builtin:NAME), an adapter, a run, a checkpoint or a config.",
        default=None,
    )
    adapters: list[str] | None = option(
        "[NAME=]DIR",
        "An adapter (folder, run, Hub id), by a name where there are several; alone, it brings its base.",
        "--adapter",
    )
    base_model: str | None = option("MODEL", "The base to use, whatever the adapter names.")
    quantize: QuantizationType | None = option(None, "Store the base in 4 or 8 bits [default: as in training].")
    dtype: DtypeName | None = option(None, "Compute in it [default: as trained, and as the device can].")
    merge: bool = flag("Fold the adapter into the weights first, in memory: the same answers but for rounding, faster.")
    system: str | None = option("TEXT", "The system prompt [default: as trained].")
    source_lang: str | None = option(
        "CODE", "The language of what an encoder-decoder reads, as its tokenizer calls it [default: as trained]."
    )
    target_lang: str | None = option("CODE", "The language that it answers in [default: as trained].")
    max_new_tokens: int | None = option("N", "The most tokens of an answer [default: saved].", min=1)
    temperature: float | None = option(
        "T", "0 is greedy [default: as saved].", min=0,
        callback=_must(math.isfinite, "{} is not a temperature; 0 is greedy, 1 is the model's own distribution."),
    )  # fmt: skip
    top_p: float | None = option("P", "Sample among the likeliest that hold this probability.", callback=SHARE)
    top_k: int | None = option("K", "Sample among this many of the likeliest tokens.", min=1)
    min_p: float | None = option(
        "P", "Sample among the tokens at least this share as likely as the likeliest.", callback=SHARE
    )
    repetition_penalty: float | None = option(
        "X", "Above 1, tokens that are there already become less likely; for greedy answers too.",
        callback=_must(lambda x: 0 < x < math.inf, "{} is not above 0; 1 is no penalty, 1.1 a mild one."),
    )  # fmt: skip
    stop: list[str] | None = option(
        "TEXT", "End the answer in front of this text; may be given several times.",
        callback=_must(lambda texts: "" not in texts, "An empty text would end every answer before its first token."),
    )  # fmt: skip
    trust_remote_code: bool = trust_flag()
    num_beams: int | None = option(
        "N", "Follow N answers at once and give the likeliest: beam search, without sampling.", min=1
    )
    seed: int | None = option(
        "N", "The seed of sampling: the same seed, the same answer.", default=0, min=0, max=2**32 - 1
    )

    @property
    def model(self) -> ModelRequest:
        """What answers; refused where nothing is named that could."""
        refuse((self.target is None and not self.adapters, "Name a TARGET, or an --adapter that brings its base."))
        quantize = None
        if self.quantize:
            from loraft.config.sections import QuantizationSection

            quantize = QuantizationSection(type=self.quantize)
        return ModelRequest(
            self.target, self.adapters or (), self.base_model, quantize, self.dtype, self.merge,
            self.source_lang, self.target_lang, self.trust_remote_code,
        )  # fmt: skip

    @property
    def generation(self) -> GenerationRequest:
        """How it answers."""
        given = {each.name: getattr(self, each.name) for each in fields(GenerationRequest)}
        return GenerationRequest(**{**given, "stop": tuple(self.stop or ())})


@dataclass(frozen=True)
class RowOptions:
    """What there is to say of the rows that `--data` names."""

    name: str | None = option("NAME", "The configuration of a Hub dataset, or the sheet of a workbook.")
    split: str | None = option("NAME", "The split of a Hub dataset or a builtin [default: train].")
    columns: str | None = option(
        "OURS=THEIRS,…",
        "What the columns are, where they have names of their own, such as prompt=Frage,completion=Antwort.",
    )
    row_format: RowFormat | None = option(None, "The format of the rows [default: by their columns].", "--format")

    def source(self, data: str | None) -> DataSource | None:
        """The rows that `data` names, with what is said of them; None where it names none."""
        of_rows = any(each is not None for each in (self.name, self.split, self.columns, self.row_format))
        refuse(
            (data == "", "--data is empty: name the rows."),
            (of_rows and data is None, "--name, --split, --columns and --format are about --data, and there is none."),
        )
        names = _column_names(self.columns)
        if data is None:
            return None
        from loraft.config.sections import DataSource

        return DataSource(path=data, name=self.name, split=self.split, columns=names, format=self.row_format or "auto")


def _column_names(text: str | None) -> dict[str, str]:
    """What `--columns` means, as `data.columns` would say it."""
    if text is None:
        return {}
    parts = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in parts):
        raise typer.BadParameter(f"{text!r} is not of the form OURS=THEIRS,OURS=THEIRS.", param_hint="--columns")
    names = {ours.strip(): theirs.strip() for ours, _, theirs in parts}
    if len(names) < len(parts):
        raise typer.BadParameter(f"{text!r} names two columns for one of ours.", param_hint="--columns")
    return names
