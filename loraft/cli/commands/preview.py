"""`loraft preview`: rows as the model will see them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraft.cli.console import console_on, print_json, print_note, print_result, waiting
from loraft.cli.options import ConfigOptions, JsonOption, flag, option
from loraft.cli.views.preview_view import check_page, has_shades, render_preview, write_page


@dataclass(frozen=True)
class PreviewOptions:
    """Which rows are shown, and how."""

    count: int = option("N", "How many rows, from the first.", "--count", "-n", default=5, min=1)
    split: Literal["train", "eval"] = option(None, "The rows that are trained on, or those held out.", default="train")
    places: list[str] | None = option(
        "PLACE",
        "A row by its line or number, or by its place as loraft prints it, such as train.jsonl:17; and why, where it "
        "is left out. May be given several times.",
        "--row",
    )
    whole: bool = flag("Show every token of long rows.")
    html: Path | None = option("FILE", "Write a page to share instead: one file, no scripts.")
    overwrite: bool = flag("Replace FILE even if it is no page of this command.")


def preview(given: ConfigOptions, show: PreviewOptions, as_json: JsonOption = False) -> None:
    """Show rows as the model will see them.

    Each token by itself, what of the row is learned, special tokens by name, which rows share a batch and where one
    ends; of an encoder-decoder source and target, of a classifier the class. Rows that were dropped are counted, with
    the reason. Only the tokenizer and the data are read, no weights.
    """
    config = given.read()
    html, path = show.html, Path(given.config)
    if html is not None:
        check_page(html, config, path, overwrite=show.overwrite)
    with waiting("reading the rows"):
        from loraft.api import preview as look

        seen = look(config, count=show.count, split=show.split, places=show.places or ())
    print_note(*seen.notes)
    if html is not None:
        write_page(seen, html, path.name)
    if as_json:
        print_json({**seen.as_dict(), **({"html": str(html)} if html is not None else {})})
    elif html is not None:
        print_result(f"wrote {html}: {len(seen.rows)} row{'s' * (len(seen.rows) != 1)}")
    else:
        print_result(*render_preview(seen, shaded=has_shades(console_on(sys.stdout)), whole=show.whole))
