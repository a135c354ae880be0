"""Rows as the model sees them, drawn on a terminal, by shades or by marks, and as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.text_tables import as_count, as_share
from loraft.errors import DataError
from loraft.figures import counted
from loraft.io.atomic import write_whole
from loraft.io.called_files import called
from loraft.io.paths import begins_with, check_output_file

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig
    from loraft.inspection.row_preview import Preview, RowPart, SeenBatch, SeenRow, SeenToken


ENDS = 150
"""Tokens that are shown of each end of a long row."""
SHORT = 3 * ENDS
"""Rows up to this many tokens are shown whole."""
SHADES = {
    False: ("#c9d1d9 on #2b3036", "#c9d1d9 on #3a4149"),
    True: ("bold #eafff0 on #14532d", "bold #eafff0 on #1b7a43"),
}
"""Two shades for tokens that are only read, and two for those that are learned."""
SPECIAL = "#ffb454"
BEGINS, BETWEEN, ENDS_WITH = "⟦", "│", "⟧"
VISIBLE = {"\n": "⏎\n", "\t": "⇥"}
READERS_OF = {
    "source": "the encoder reads",
    "chosen": "chosen: what is marked becomes more likely",
    "rejected": "rejected: what is marked becomes less likely",
    "desirable": "desirable: what is marked becomes more likely",
    "undesirable": "undesirable: what is marked becomes less likely",
}
"""What is done with a part of a row."""
ROLES = {
    "bos_token": "beginning of text", "eos_token": "end of text", "pad_token": "padding", "unk_token": "unknown",
    "sep_token": "separator", "cls_token": "summary", "mask_token": "mask",
}  # fmt: skip
NUMBERED = re.compile(r"(.*?)(?:: (row \d+)|(:\d+))$", re.DOTALL)


def has_shades(console: Console) -> bool:
    """Whether a console can tell tokens apart by their background, which needs more than sixteen colours."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def legible(text: str) -> str:
    """A token's text with what cannot be seen made visible: line ends, tabs, control and formatting characters."""
    return "".join(map(_legible_sign, text)) or "‥"


def _legible_sign(sign: str) -> str:
    if sign.isprintable():
        return sign
    return VISIBLE.get(sign) or (printable(sign) if sign.isascii() else f"<U+{ord(sign):04X}>")


def render_preview(preview: Preview, *, shaded: bool, whole: bool = False) -> list[RenderableType]:
    """The split in a line, its rows, how the first batches are laid, and what the marks mean."""
    parts: list[RenderableType] = [Text(heading_of(preview), style="bold"), *_counts(preview), Text()]
    for row in preview.rows:
        parts += _row(row, shaded=shaded, whole=whole)
    if preview.batches:
        parts += _batches(preview, shaded=shaded)
    parts += _legend(preview, shaded=shaded)
    return parts


def heading_of(preview: Preview) -> str:
    """The split in a line."""
    rows = f"{preview.split}: {counted(preview.rows_in_split, 'row')} for {preview.task}"
    if preview.classes:
        return f"{rows} · {as_count(preview.tokens)} tokens · {len(preview.classes)} classes"
    share = as_share(preview.trained, preview.tokens)
    return f"{rows} · {as_count(preview.tokens)} tokens, {as_count(preview.trained)} of them learned ({share})"


def row_words(row: SeenRow) -> str:
    """A row's counts, and what became of it."""
    words = [counted(row.tokens, "token")]
    if row.label is None:
        words.append(f"{as_count(row.trained)} learned")
    else:
        words.append(f"class {row.class_number} = {row.label}")
    if row.piece is not None:
        words.append(f"piece {row.piece[0]} of {row.piece[1]}")
    return " · ".join(words)


def part_words(part: RowPart) -> str:
    """Who reads a part of a row."""
    what = READERS_OF.get(part.name, "the decoder learns")
    return f"{what}, {counted(len(part.tokens), 'token')}"


def special_words(preview: Preview) -> Iterator[str]:
    """The special tokens that are shown, by name."""
    for token in preview.special_tokens:
        roles = ", ".join(ROLES.get(role, role.replace("_", " ")) for role in token.roles)
        yield f"{legible(token.text.strip() or token.text)} is id {token.id}" + (f" ({roles})" if roles else "")


def class_words(preview: Preview) -> str:
    """The classes with their numbers."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(preview.classes))


def place_words(where: str, preview: Preview) -> str:
    """A row's place in a batch: its number alone where all rows come from one file."""
    found = NUMBERED.fullmatch(where)
    shown = (NUMBERED.fullmatch(row.where) for batch in preview.batches for row in batch.rows)
    files = {place[1] for place in shown if place is not None}
    if found is None or len(files) > 1 or len({source.source for source in preview.sources}) > 1:
        return where
    return found[2] or f"line {found[3].removeprefix(':')}"


def laid_words(preview: Preview) -> str:
    """How the rows of a batch are laid."""
    return "end to end, without padding" if preview.end_to_end else "a line each, padded on the right"


def _counts(preview: Preview) -> Iterator[Text]:
    """What became of the rows of each source, where not all of them are kept."""
    for source in preview.sources:
        numbers = {
            "bad, skipped": source.bad,
            f"too long, {source.done}": source.overlength,
            "without a learned token, left out": source.untrained,
        }
        if lost := [f"{as_count(number)} {what}" for what, number in numbers.items() if number]:
            yield Text(f"{source.source}: of {as_count(source.read)} rows {' · '.join(lost)}", style="yellow")


def _row(row: SeenRow, *, shaded: bool, whole: bool) -> Iterator[RenderableType]:
    yield Text.assemble((printable(row.where), "bold"), (f"  {printable(row_words(row))}", "dim"))
    if row.left_out is not None:
        yield Text.assemble(("  not in this split: ", "bold red"), printable(row.left_out))
    for part in row.parts:
        if part.name != "text":
            yield Text(f"  {part_words(part)}", style="dim")
        tokens = _tokens(part.tokens, shaded=shaded, whole=whole)
        tokens.rstrip()  # the line end of the last token, whose sign stands before it
        yield Padding(tokens, (0, 0, 0, 2))
    yield Text()


def _tokens(tokens: Sequence[SeenToken], *, shaded: bool, whole: bool) -> Text:
    if whole or len(tokens) <= SHORT:
        return _strip(tokens, 0, shaded=shaded)
    between = tokens[ENDS:-ENDS]
    learned = sum(token.trained for token in between)
    gap = f"\n  … {as_count(len(between))} tokens more, {as_count(learned)} of them learned (--whole shows them) …\n"
    begin, end = _strip(tokens[:ENDS], 0, shaded=shaded), _strip(tokens[-ENDS:], len(between), shaded=shaded)
    return Text.assemble(begin, (gap, "dim italic"), end)


def _strip(tokens: Sequence[SeenToken], first: int, *, shaded: bool) -> Text:
    text, learned, segment = Text(), False, tokens[0].segment if tokens else None
    for place, token in enumerate(tokens):
        if not shaded:
            edge = BETWEEN if place and token.trained == learned else ""
            if token.trained != learned:
                edge = BEGINS if token.trained else ENDS_WITH
            text.append(edge, "bold" if edge in (BEGINS, ENDS_WITH) else "dim")
        if token.segment != segment:
            text.append(" second text: ", "italic")
        learned, segment = token.trained, token.segment
        text.append(legible(token.text), _style(token, first + place, shaded=shaded))
    return text.append(ENDS_WITH, "bold") if learned and not shaded else text


def _style(token: SeenToken, place: int, *, shaded: bool) -> str:
    if not shaded:
        return "bold green" if token.trained else "magenta" if token.special else ""
    style = SHADES[token.trained][place % 2]
    return re.sub(r"#[0-9a-f]{6} on", f"{SPECIAL} on", style) if token.special else style


def _batches(preview: Preview, *, shaded: bool) -> Iterator[RenderableType]:
    shown, total = len(preview.batches), preview.batches_an_epoch
    if total is None:
        which = f"the first {shown} of a stream"
    else:
        which = f"the first {shown} of {as_count(total)}" if shown < total else "all" if total > 1 else "the only one"
    yield Text.assemble(("batches of the first epoch", "bold"), (f"  {which} · rows {laid_words(preview)}", "dim"))
    for number, batch in enumerate(preview.batches, start=1):
        yield Text.assemble((f"  {number}  ", "bold"), (_batch_words(batch, preview), "dim"))
        yield Padding(_laid(batch, preview, shaded=shaded), (0, 0, 0, 5))
    yield Text()


def _batch_words(batch: SeenBatch, preview: Preview) -> str:
    lines, time = batch.shape
    what = "decisions" if preview.classes else "tokens"
    size = f"{as_count(time)} tokens in one line" if preview.end_to_end else f"{lines} lines of {as_count(time)} tokens"
    if batch.target_shape is not None:
        size += f", targets of {as_count(batch.target_shape[1])}"
    padding = f" · {as_count(batch.padding)} of padding" if batch.padding else ""
    return f"{counted(len(batch.rows), 'row')} · {size}{padding} · {as_count(batch.trained)} {what} learned"


def _laid(batch: SeenBatch, preview: Preview, *, shaded: bool) -> RenderableType:
    """The rows of a batch one after another, none torn apart at the end of a line."""
    words = []
    for place, row in enumerate(batch.rows):
        size = as_count(row.tokens) if row.target is None else f"{as_count(row.tokens)} → {as_count(row.target)}"
        text = Text.assemble((printable(place_words(row.where, preview)), "" if shaded else "dim"), f" {size}")
        words.append(Text(f" {text.plain} ", SHADES[False][place % 2]) if shaded else text.append(" ▕", "dim"))
    return Columns(words, padding=(0, 1 - shaded))


def _legend(preview: Preview, *, shaded: bool) -> Iterator[Text]:
    if preview.classes:
        yield Text.assemble(("classes  ", "dim"), printable(class_words(preview)))
    if shaded:
        legend = Text.assemble(("tokens   ", "dim"), ("read", SHADES[False][0]), (" only", SHADES[False][1]))
        if not preview.classes:
            legend.append("  ").append("lear", SHADES[True][0]).append("ned", SHADES[True][1])
        yield legend.append("  ").append("special", SHADES[False][0].replace("#c9d1d9", SPECIAL))
    else:
        learned = "" if preview.classes else f", {BEGINS} {ENDS_WITH} around what is learned"
        yield Text.assemble(("tokens   ", "dim"), f"{BETWEEN} between tokens{learned}, ⏎ a line end")
    if special := list(special_words(preview)):
        yield Text.assemble(("special  ", "dim"), printable(" · ".join(special)))


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
    from loraft.rows.places import files_here

    rows = (path for source in (*config.data.train, *config.data.eval_sources) for path in files_here(source.path))
    check_output_file(path, reads=(config_path, *rows), parameter=HTML)
    if path.exists() and not overwrite and not begins_with(path, MARK):
        remedy = "Name another file, or replace it with --overwrite."
        raise DataError("is there already, and is no page of loraft preview", where=path, parameter=HTML, remedy=remedy)


def write_page(preview: Preview, path: Path, title: str) -> None:
    """Write the page, whole or not at all."""
    try:
        write_whole(path, page(preview, title), errors="replace")  # a file's name may be no text
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=path, parameter=HTML) from error


def page(preview: Preview, title: str) -> str:
    """The page as HTML."""
    classes = [f"classes: {class_words(preview)}"] if preview.classes else []
    facts = "".join(f"<li>{escape(line)}</li>" for line in [*preview.notes, *special_words(preview), *classes])
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', MARK,
        '<meta name="viewport" content="width=device-width">', f"<title>{escape(title)}: rows</title>",
        f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>{escape(title)}</h1>", f"<p>{escape(heading_of(preview))}</p>",
        "<p>Each shade is a token; what is <b>learned</b> is green and underlined. Point at a token for its id.</p>",
        *([f"<ul>{facts}</ul>"] if facts else []),
        *(line for row in preview.rows for line in _row_html(row)),
        *_batches_html(preview), "</body>", "</html>",
    ]  # fmt: skip
    return called("\n".join(parts)) + "\n"


def _row_html(row: SeenRow) -> Iterator[str]:
    yield f"<h2>{escape(row.where)}</h2>"
    yield f"<p>{escape(row_words(row))}</p>"
    if row.left_out is not None:
        yield f'<p class="out">not in this split: {escape(row.left_out)}</p>'
    for part in row.parts:
        if part.name != "text":
            yield f"<p>{part_words(part)}</p>"
        yield f"<pre>{''.join(map(_token, part.tokens))}</pre>"


def _token(token: SeenToken) -> str:
    kinds = " ".join(["t"] * token.trained + ["s"] * token.special)
    marked = f' class="{kinds}"' if kinds else ""
    segment = f", text {token.segment + 1}" if token.segment is not None else ""
    return f'<span{marked} title="id {token.id}{segment}">{escape(legible(token.text))}</span>'


def _batches_html(preview: Preview) -> Iterator[str]:
    if not preview.batches:
        return
    yield "<h2>The first batches</h2>"
    total = preview.batches_an_epoch
    which = "Of a stream" if total is None else f"Of {total} in an epoch"
    yield f"<p>{which}; rows {laid_words(preview)}. Tokens of each row.</p>"
    for batch in preview.batches:
        words = (f"{place_words(row.where, preview)}: {row.tokens}" + _target(row.target) for row in batch.rows)
        yield f'<p class="laid">{"".join(f"<span>{escape(word)}</span>" for word in words)}</p>'


def _target(tokens: int | None) -> str:
    return "" if tokens is None else f" → {tokens}"
