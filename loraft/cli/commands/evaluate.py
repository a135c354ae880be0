"""`loraft evaluate`: loss and the task's figures, of a model alone or beside its base."""

from __future__ import annotations

import math
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraft.cli.options import (
    AdaptersOption,
    BaseModelOption,
    ColumnsOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    QuantizeOption,
    SourceLanguageOption,
    TargetArgument,
    TargetLanguageOption,
    column_names,
    quantization,
)
from loraft.cli.runner import handle_errors
from loraft.config.choices import RowFormat
from loraft.inference.requests import GenerationRequest, ModelRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from loraft.evaluation.evaluation_result import Confusion, Evaluation

LABEL_WIDTH = 22
MOST_CLASSES = 10
"""The most classes whose whole matrix is shown, and the most mistakes that are listed of more."""
OF_A_HUNDRED = ("bleu", "chrf")
"""The figures that run from 0 to 100 by themselves."""


@handle_errors
def evaluate(
    target: TargetArgument = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            show_default=False,
            help="Rows as in training: JSONL, JSON, CSV, Parquet, a Hub dataset, builtin:NAME [default: those that the "
            "run held out].",
        ),
    ] = None,
    row_format: Annotated[
        RowFormat | None,
        typer.Option("--format", show_default=False, help="The format of the rows [default: as the columns tell]."),
    ] = None,
    columns: ColumnsOption = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", show_default=False, help="The split of a Hub dataset or a builtin."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="A,B",
            show_default=False,
            help="Figures besides loss and perplexity: exact_match, valid_json, bleu, chrf, rouge; of a classifier "
            "accuracy, macro_f1, mcc; with loss alone nothing is generated [default: the task's].",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            show_default=False,
            help="Where each row is written with its loss and its answer or class, as JSONL.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the output holds.")] = False,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Measure the base without the adapter too, and how sure the difference is."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, show_default=False, help="At most so many rows.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="How many rows at a time: speed and memory alone.")
    ] = 8,
    max_new_tokens: MaxNewTokensOption = None,
    adapters: AdaptersOption = None,
    base_model: BaseModelOption = None,
    quantize: QuantizeOption = None,
    dtype: DtypeOption = None,
    source_lang: SourceLanguageOption = None,
    target_lang: TargetLanguageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on rows that it has not learned: loss, perplexity, and its answers by the right ones.

    The loss is of the tokens that training would learn, each token counted once. Answers are greedy. Template, system
    prompt, languages and stop tokens are those that were saved with the adapter. A classifier is measured by the
    classes that it tells, with the matrix of which it took for which.
    """
    if target is None and not adapters:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    if overwrite and output is None:
        raise typer.BadParameter("--overwrite is about --output, and there is none.")
    if metrics is not None and not metrics.strip(" ,"):
        raise typer.BadParameter("--metrics names at least one; loss alone generates nothing.")
    if data is None and (split, row_format, columns) != (None, None, None):
        raise typer.BadParameter("--columns, --split and --format are about --data, and there is none.")
    names = column_names(columns) or {}

    from loraft.cli.console import console_on, print_json, print_result, waiting
    from loraft.cli.views.progress import view_on
    from loraft.config.sections import DataSource

    with waiting("loading libraries"):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        found = api.evaluate(
            ModelRequest(
                target,
                adapters or (),
                base_model,
                quantization(quantize),
                dtype,
                source_lang=source_lang,
                target_lang=target_lang,
            ),
            data=DataSource(path=data, split=split, format=row_format or "auto", columns=names) if data else None,
            metrics=[name for name in metrics.split(",") if name.strip()] if metrics is not None else None,
            output=output,
            overwrite=overwrite,
            baseline=baseline,
            limit=limit,
            batch_size=batch_size,
            options=GenerationRequest(temperature=0, num_beams=1, max_new_tokens=max_new_tokens),
            observer=view,
        )
    if as_json:
        print_json({"target": target, **found.as_dict()})
    else:
        named = found.measured.name if len(adapters or ()) > 1 else target or (adapters or ("",))[0]
        print_result(*_drawn(found, named))


def _drawn(found: Evaluation, named: str) -> list[RenderableType]:
    """The figures with whose they are, and the base's beside them where there is one."""
    from loraft.cli.text_tables import facts

    about: dict[str, object] = {"figures of": named, "task": found.task, "data": found.data, "rows": found.rows}
    if found.confusion_matrix is None:
        about["tokens"] = found.tokens
    if found.measured.metrics and found.references != found.rows:
        about["rows with an answer"] = found.references
    if found.measured.cut:
        about["cut answers"] = f"{found.measured.cut:,} ended at the limit (--max-new-tokens)"
    if found.output is not None:
        about["output"] = found.output
    about["seconds"] = found.seconds
    parts = [facts("evaluated", about, label_width=LABEL_WIDTH), _figures(found)]
    if found.confusion_matrix is not None:
        parts.append(_confusion(found.confusion_matrix))
    if found.signatures:
        parts.append(facts("computed as", dict(found.signatures), label_width=LABEL_WIDTH))
    return parts


def _figures(found: Evaluation) -> RenderableType:
    from loraft.cli.text_tables import facts, text_table

    measured, base = found.measured, found.baseline
    if base is None:
        shown = {name: _figure(name, value) for name, value in measured.figures.items()}
        return facts("figures", shown, label_width=LABEL_WIDTH)
    columns = [("", False), (base.name, True), (measured.name, True), ("difference", True), ("95 % interval", True)]
    rows = []
    for name, value in measured.figures.items():
        apart = found.differences[name]
        interval = f"{_figure(name, apart.low, signed=True)} to {_figure(name, apart.high, signed=True)}"
        difference = _figure(name, apart.difference, signed=True)
        rows.append([_label(name), _figure(name, base.figures[name]), _figure(name, value), difference, interval])
    return text_table("figures", columns, rows)


def _confusion(found: Confusion) -> RenderableType:
    """The matrix where it fits a screen; else which classes were most often taken for which."""
    from loraft.cli.text_tables import text_table

    labels = found.labels
    if len(labels) <= MOST_CLASSES:
        rows = [[label, *(f"{count:,}" for count in row)] for label, row in zip(labels, found.matrix, strict=True)]
        return text_table("rows by class", [("is ╲ told", False), *((label, True) for label in labels)], rows)
    mistakes = sorted(
        (
            (count, labels[right], labels[told])
            for right, row in enumerate(found.matrix)
            for told, count in enumerate(row)
            if count and told != right
        ),
        key=lambda each: -each[0],
    )[:MOST_CLASSES]
    columns = [("is", False), ("told", False), ("rows", True)]
    return text_table(
        "most frequent mistakes", columns, [[right, told, f"{count:,}"] for count, right, told in mistakes]
    )


def _figure(name: str, value: float, *, signed: bool = False) -> str:
    """A figure as the field writes it: a loss with four decimals, BLEU and chrF from 0 to 100, shares in per cent."""
    from loraft.cli.formatting import as_measure

    if not math.isfinite(value):
        return "–"
    sign = "+" if signed and value > 0 else ""
    if name in ("loss", "perplexity", "mcc"):
        return f"{sign}{as_measure(value)}"
    if name in OF_A_HUNDRED:
        return f"{sign}{value:.2f}"
    return f"{sign}{100 * value:.2f} %"


def _label(name: str) -> str:
    return name.replace("_", " ")
