"""Rows as the model sees them, as one page to share: no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from loraft.cli.views.preview_view import (
    heading_of,
    laid_words,
    legible,
    part_words,
    place_words,
    row_words,
    special_words,
)
from loraft.errors import DataError
from loraft.io.atomic import write_whole
from loraft.io.paths import check_output_file

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig
    from loraft.inspection.row_preview import Preview, RowPart, SeenBatch, SeenRow, SeenToken

HTML = "html"
MARK = '<meta name="generator" content="loraft preview">'
"""Tells a page of this command, which may be replaced, from any other file."""
STYLE = """
:root { color-scheme: light dark; --read: #eceff2; --read2: #dde2e7; --learned: #b7f0c8; --learned2: #8fe3a8;
  --special: #9a4b00; --ink: #1c2126; --quiet: #66707a; }
@media (prefers-color-scheme: dark) { :root { --read: #2b3036; --read2: #3a4149; --learned: #14532d;
  --learned2: #1b7a43; --special: #ffb454; --ink: #e6edf3; --quiet: #9aa4ae; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 2rem 0 .3rem } p, li, figcaption { color: var(--quiet) }
pre { font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 }
pre span { background: var(--read); border-radius: 2px } pre span:nth-of-type(even) { background: var(--read2) }
pre .t { background: var(--learned); border-bottom: 2px solid currentColor; font-weight: 600 }
pre .t:nth-of-type(even) { background: var(--learned2) } .s { color: var(--special) } .out { color: #c93c37 }
.laid span { display: inline-block; border: 1px solid var(--quiet); padding: 0 .4rem; margin: 0 -1px 2px 0 }
""".strip()


def check_page(path: Path, config: RunConfig, config_path: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is read, a file that the page cannot be written to.

    Raises:
        DataError: It is the config or a file of rows, it is no page of this command, or there is no folder for it.
    """
    evaluation = config.data.eval if isinstance(config.data.eval, tuple) else ()
    rows = (Path(source.path) for source in (*config.data.train, *evaluation))
    check_output_file(path, reads=(config_path, *rows), parameter=HTML)
    if path.exists() and not overwrite and not _is_page(path):
        remedy = "Name another file, or replace it with --overwrite."
        raise DataError(
            "is there already, and is no page of loraft preview", where=str(path), parameter=HTML, remedy=remedy
        )


def write_page(preview: Preview, path: Path, title: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        write_whole(path, page(preview, title), errors="replace")  # a file's name may be no text
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path), parameter=HTML) from error


def page(preview: Preview, title: str) -> str:
    """The page as HTML."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', MARK,
        '<meta name="viewport" content="width=device-width">', f"<title>{escape(title)}: rows</title>",
        f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>{escape(title)}</h1>", f"<p>{escape(heading_of(preview))}</p>",
        "<p>Each shade is a token; what is <b>learned</b> is green and underlined. Point at a token for its id.</p>",
        *_list([*preview.notes, *special_words(preview), *_classes(preview)]),
        *(line for row in preview.rows for line in _row(row)),
        *_batches(preview), "</body>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _list(lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _classes(preview: Preview) -> Iterator[str]:
    if preview.classes:
        yield "classes: " + ", ".join(f"{number} {name}" for number, name in enumerate(preview.classes))


def _row(row: SeenRow) -> Iterator[str]:
    yield f"<h2>{escape(row.where)}</h2>"
    yield f"<p>{escape(row_words(row))}</p>"
    if row.left_out is not None:
        yield f'<p class="out">not in this split: {escape(row.left_out)}</p>'
    for part in row.parts:
        yield from _part(part)


def _part(part: RowPart) -> Iterator[str]:
    if part.name != "text":
        yield f"<p>{part_words(part)}</p>"
    yield f"<pre>{''.join(_token(token) for token in part.tokens)}</pre>"


def _token(token: SeenToken) -> str:
    kinds = " ".join(["t"] * token.trained + ["s"] * token.special)
    marked = f' class="{kinds}"' if kinds else ""
    segment = f", text {token.segment + 1}" if token.segment is not None else ""
    return f'<span{marked} title="id {token.id}{segment}">{escape(legible(token.text))}</span>'


def _batches(preview: Preview) -> Iterator[str]:
    if not preview.batches:
        return
    yield "<h2>The first batches</h2>"
    total = preview.batches_an_epoch
    which = "Of a stream" if total is None else f"Of {total} in an epoch"
    yield f"<p>{which}; rows {laid_words(preview)}. Tokens of each row.</p>"
    for batch in preview.batches:
        yield f'<p class="laid">{_laid(batch, preview)}</p>'


def _laid(batch: SeenBatch, preview: Preview) -> str:
    words = (
        f"{place_words(row.where, preview)}: {row.tokens}" + (f" → {row.target}" if row.target is not None else "")
        for row in batch.rows
    )
    return "".join(f"<span>{escape(word)}</span>" for word in words)


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(400)
    except OSError:
        return False
