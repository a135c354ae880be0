"""The arguments and options that commands share, each said once.

This module knows their names, bounds and help. It refuses to know what a command does with them.
"""

from __future__ import annotations

import math
from typing import Annotated

import typer

__all__ = [
    "AdapterOption",
    "ConfigArgument",
    "JsonOption",
    "MaxNewTokensOption",
    "OverridesArgument",
    "SamplingSeedOption",
    "SystemOption",
    "TargetArgument",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
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
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="DIR", show_default=False, help="The folder of an adapter; alone, it brings its base."
    ),
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
