"""The arguments and options that commands share, each said once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from loraft.config.sections import QuantizationSection


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a temperature; 0 is greedy, 1 is the model's own distribution.")
    return value


def _share(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1.")
    return value


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not above 0; 1 is no penalty, 1.1 a mild one.")
    return value


def _not_empty(values: list[str] | None) -> list[str] | None:
    if "" in (values or ()):
        raise typer.BadParameter("An empty text would end every answer before its first token.")
    return values


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
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS,…",
        show_default=False,
        help="What the columns are, where they have names of their own, such as prompt=Frage,completion=Antwort.",
    ),
]
QuantizeOption = Annotated[
    Literal["nf4", "fp4"] | None,
    typer.Option("--quantize", show_default=False, help="Store the base in 4 bits [default: as in training]."),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", show_default=False, help="Compute in it [default: as trained, and as the device can]."),
]
SourceLanguageOption = Annotated[
    str | None,
    typer.Option(
        "--source-lang",
        metavar="CODE",
        show_default=False,
        help="The language of what an encoder-decoder reads, as its tokenizer calls it [default: as trained].",
    ),
]
TargetLanguageOption = Annotated[
    str | None,
    typer.Option(
        "--target-lang",
        metavar="CODE",
        show_default=False,
        help="The language that it answers in [default: as trained].",
    ),
]
MergeOption = Annotated[
    bool,
    typer.Option(
        "--merge", help="Fold the adapter into the weights first, in memory: the same answers but for rounding, faster."
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
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="P",
        callback=_share,
        show_default=False,
        help="Sample among the tokens at least this share as likely as the likeliest.",
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        callback=_above_zero,
        show_default=False,
        help="Above 1, tokens that are there already become less likely; for greedy answers too.",
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        callback=_not_empty,
        show_default=False,
        help="End the answer in front of this text; may be given several times.",
    ),
]
NumBeamsOption = Annotated[
    int | None,
    typer.Option(
        "--num-beams",
        metavar="N",
        min=1,
        show_default=False,
        help="Follow N answers at once and give the likeliest: beam search, without sampling.",
    ),
]
TraceOption = Annotated[
    bool, typer.Option("--trace", help="Tell how each token came about: what was fed, what was likely, what was taken.")
]
LayersOption = Annotated[
    bool, typer.Option("--layers", help="With --trace: what each layer would have said, had it been the last.")
]
NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-kv-cache", help="Read everything again at each step, and compare the answer and its speed with the cache."
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
    from loraft.config.sections import QuantizationSection

    return QuantizationSection(type=kind) if kind else None


def column_names(text: str | None) -> dict[str, str] | None:
    """What `--columns` means, as `data.columns` would say it."""
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in parts):
        raise typer.BadParameter(f"{text!r} is not of the form OURS=THEIRS,OURS=THEIRS.", param_hint="--columns")
    return {ours.strip(): theirs.strip() for ours, _, theirs in parts}
