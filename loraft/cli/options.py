"""The arguments and options that commands share, each said once.

This module knows their names, bounds and help. It refuses to know what a command does with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from loraft.config.schema import QuantizationSection

__all__ = [
    "AdaptersOption",
    "BaseModelOption",
    "ConfigArgument",
    "JsonOption",
    "MaxNewTokensOption",
    "MergeOption",
    "OverridesArgument",
    "QuantizeOption",
    "SamplingSeedOption",
    "SystemOption",
    "TargetArgument",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
    "quantization",
]


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a temperature; 0 is greedy, 1 is the model's own distribution.")
    return value


def _share(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1.")
    return value


ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", show_default=False, help="The YAML file of the run.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="Values that replace those of the file, such as training.max_steps=50.",
    ),
]
TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="A base model (Hub id, folder, .gguf, builtin:NAME), an adapter, a run, a checkpoint or a config.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else there.")
]
AdaptersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="[NAME=]DIR",
        show_default=False,
        help="An adapter (folder, run, Hub id), by a name where there are several; alone, it brings its base.",
    ),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model", metavar="MODEL", show_default=False, help="The base to use, whatever the adapter names."
    ),
]
QuantizeOption = Annotated[
    Literal["nf4", "fp4"] | None,
    typer.Option("--quantize", show_default=False, help="Store the base in 4 bits [default: as in training]."),
]
MergeOption = Annotated[
    bool, typer.Option("--merge", help="Fold the adapter into the weights first, in memory: the same answers, faster.")
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", show_default=False, help="The system prompt [default: as trained]."),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        show_default=False,
        help="The most tokens of an answer [default: saved].",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0,
        callback=_finite,
        show_default=False,
        help="0 is greedy [default: as saved].",
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        callback=_share,
        show_default=False,
        help="Sample among the likeliest that hold this probability.",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k", metavar="K", min=1, show_default=False, help="Sample among this many of the likeliest tokens."
    ),
]
SamplingSeedOption = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**32 - 1, help="The seed of sampling: the same seed, the same answer."
    ),
]


def quantization(kind: Literal["nf4", "fp4"] | None) -> QuantizationSection | None:
    """What `--quantize` means, as a config would say it."""
    from loraft.config.schema import QuantizationSection

    return QuantizationSection(type=kind) if kind else None
