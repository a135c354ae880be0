"""`loraft predict`: the class of a text, or of every row of a file, by a classifier that was trained."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from loraft.cli.options import (
    AdaptersOption,
    BaseModelOption,
    DtypeOption,
    JsonOption,
    QuantizeOption,
    TargetArgument,
    quantization,
)
from loraft.cli.runner import handle_errors
from loraft.errors import Interrupted, InvalidInputError
from loraft.inference.requests import ModelRequest


@handle_errors
def predict(
    target: TargetArgument = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", show_default=False, help="A text to classify.")
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option("--text-pair", metavar="TEXT", show_default=False, help="The second text of a pair."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            show_default=False,
            help="Rows with text, and text_pair where there are two: JSONL, JSON, CSV, Parquet.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            show_default=False,
            help="Where each row of --input is written with its prediction and probabilities, as JSONL or .csv; the "
            "same command goes on with it [default: standard output].",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever the output holds.")] = False,
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", metavar="NAME", show_default=False, help="What --input calls text."),
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option("--pair-column", metavar="NAME", show_default=False, help="What --input calls text_pair."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="How many rows at a time.")] = 32,
    adapters: AdaptersOption = None,
    base_model: BaseModelOption = None,
    quantize: QuantizeOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the classes of texts by a classifier that was trained with task: seq_cls.

    Each row gets its prediction, the likeliest class, and the probability of every class.
    """
    if target is None and not adapters:
        raise typer.BadParameter("Name a TARGET, or an --adapter that brings its base.")
    first, second = _one("--text", text), _one("--text-pair", text_pair)
    if target is not None and first is None and texts is None:
        raise typer.BadParameter(f"{target!r} is TARGET, the model: give what it classifies by --text or --input.")
    _refuse_contradictions(first, second, texts, output, overwrite=overwrite)
    if texts is None and (text_column or pair_column):
        raise typer.BadParameter("--text-column and --pair-column are about --input, and there is none.")
    model = ModelRequest(target, adapters or (), base_model, quantization(quantize), dtype)
    if texts is not None:
        columns = {"text_column": text_column, "pair_column": pair_column}
        _predict_file(model, texts, output, columns, batch_size=batch_size, overwrite=overwrite, as_json=as_json)
    elif first is not None:
        _predict_text(model, first, second, as_json=as_json)


def _one(option: str, values: list[str] | None) -> str | None:
    """The one value of an option; of several the last would win, and the others be lost without a word."""
    if values is not None and len(values) > 1:
        raise typer.BadParameter(f"{option} is one text; many go into a file, with --input and --output.")
    return values[0] if values else None


def _refuse_contradictions(
    text: str | None, text_pair: str | None, texts: Path | None, output: Path | None, *, overwrite: bool
) -> None:
    if (text is None) == (texts is None):
        raise typer.BadParameter("Give either --text or --input.")
    if text_pair is not None and text is None:
        raise typer.BadParameter("--text-pair stands beside --text.")
    if texts is None and output is not None:
        raise typer.BadParameter("--output is about --input, and there is none.")
    if overwrite and output is None:
        raise typer.BadParameter("--overwrite is about --output, and there is none.")


def _predict_file(
    model: ModelRequest,
    texts: Path,
    output: Path | None,
    columns: dict[str, str | None],
    *,
    batch_size: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """The classes in a file, and on standard output what was done; without a file the rows themselves."""
    from loraft.cli.console import print_json, print_result
    from loraft.cli.text_tables import document

    if output is None:
        with TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            try:
                _classify(model, texts, rows, columns, batch_size=batch_size, overwrite=False)
            except Interrupted as stop:  # what lay in the folder goes with it
                message, remedy = "stopped: nothing was printed", "With --output FILE the same command goes on."
                raise Interrupted(message, signal_number=stop.signal_number, remedy=remedy) from None
            lines = rows.read_text(encoding="utf-8")
        if as_json:
            print_json([json.loads(line) for line in lines.split("\n")[:-1]])
        else:
            sys.stdout.write(lines)
        return
    told = _classify(model, texts, output, columns, batch_size=batch_size, overwrite=overwrite)
    if as_json:
        print_json(told)
    else:
        names = {"held": "there before", "cut": "texts cut to the model's positions"}
        shown = {names.get(key, key): value for key, value in told.items() if value not in ({}, None)}
        print_result(
            *document({key: value for key, value in shown.items() if key == "rows" or value != 0}, rest="rows")
        )


def _classify(
    model: ModelRequest, texts: Path, output: Path, columns: dict[str, str | None], *, batch_size: int, overwrite: bool
) -> dict[str, object]:
    from loraft.cli.console import console_on, waiting
    from loraft.cli.views.progress import view_on

    with waiting("loading libraries"):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        result = api.predict_file(
            model,
            texts=texts,
            output=output,
            **columns,
            batch_size=batch_size,
            overwrite=overwrite,
            observer=view,
        )
    return result.as_dict()


def _predict_text(model: ModelRequest, text: str, second: str | None, *, as_json: bool) -> None:
    """The class of one text, and how likely each is."""
    for option, given in (("--text", text), ("--text-pair", second)):
        if given is not None and not given.strip():
            raise InvalidInputError("is empty", where=option)
        if given is not None and not _is_unicode(given):
            raise InvalidInputError("is not UTF-8 text", where=option)

    from loraft.cli.console import console_on, print_json, print_result, waiting
    from loraft.cli.text_tables import text_table
    from loraft.cli.views.progress import view_on

    with waiting("loading libraries and model"):
        from loraft import api

    with redirect_stdout(sys.stderr), view_on(console_on(sys.stderr)) as view:
        (shares,) = api.predict(model, texts=[(text, second)], observer=view)
    likeliest = sorted(shares, key=shares.__getitem__, reverse=True)
    if as_json:
        pair = {} if second is None else {"text_pair": second}
        print_json({"text": text, **pair, "prediction": likeliest[0], "probabilities": shares})
        return
    rows = [(label, f"{100 * shares[label]:.2f} %") for label in likeliest]
    print_result(text_table(likeliest[0], [("class", False), ("probability", True)], rows))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
