"""`loraft preview`: rows as the model will see them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from loraft.cli.options import ConfigArgument, JsonOption, OverridesArgument
from loraft.cli.read_config import read_config
from loraft.cli.runner import handle_errors


@handle_errors
def preview(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="How many rows, from the first.")] = 5,
    split: Annotated[
        Literal["train", "eval"], typer.Option("--split", help="The rows that are trained on, or those held out.")
    ] = "train",
    places: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            metavar="PLACE",
            show_default=False,
            help="A row by its line or number, or by its place as loraft prints it, such as train.jsonl:17; and why, "
            "where it is left out. May be given several times.",
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show every token of long rows.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", show_default=False, help="Write a page to share instead: one file, no scripts."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE even if it is no page of this command.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show rows as the model will see them.

    Each token by itself, what of the row is learned, special tokens by name, which rows share a batch and where one
    ends; of an encoder-decoder source and target, of a classifier the class. Rows that were dropped are counted, with
    the reason. Only the tokenizer and the data are read, no weights.
    """
    run_config = read_config(config, overrides)

    from loraft.cli.console import console_on, print_json, print_note, print_result, waiting
    from loraft.cli.views.preview_page import check_page, write_page
    from loraft.cli.views.preview_view import Marks, render_preview

    if html is not None:
        check_page(html, run_config, Path(config), overwrite=overwrite)
    with waiting("reading the rows"):
        from loraft.inspection.row_preview import preview_rows  # and not loraft.api: training's libraries take seconds

        seen = preview_rows(run_config, count=count, split=split, places=places or ())
    for note in seen.notes:
        print_note(note)
    if html is not None:
        write_page(seen, html, Path(config).name)
    if as_json:
        print_json({**seen.as_dict(), **({"html": str(html)} if html is not None else {})})
    elif html is not None:
        print_result(f"wrote {html}: {len(seen.rows)} row{'s' * (len(seen.rows) != 1)}")
    else:
        print_result(*render_preview(seen, Marks.for_console(console_on(sys.stdout)), whole=whole))
