"""Plain texts: of a .txt or .md file each line, each paragraph, or the whole is a row with the column `text`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from io import BufferedReader

from loraft.config.choices import TextBy
from loraft.rows.opening import MOST_ROW_BYTES, RowFile, check_size, lines_of, opened
from loraft.rows.row import RawRow, look, text_of


def text_rows(file: RowFile) -> Iterator[RawRow]:
    """The rows of a plain text; each stands at the line that it begins in."""
    with opened(file) as stream:
        if file.text_by == "file":
            whole = stream.read(MOST_ROW_BYTES + 1)
            check_size(len(whole), file, 1)
            parts = iter([(1, whole)])
        elif file.text_by == "line":
            parts = (line for line in lines_of(stream, file) if line[1].strip())
        else:
            parts = _paragraphs(stream, file)
        for number, raw in parts:
            yield partial(look, f"{file.name}:{number}", _text, raw, number == 1)


def parted_by(file: RowFile) -> TextBy:
    """What of a single text is a row: its paragraphs where a blank line stands between them, else its lines."""
    with opened(file) as stream:
        paragraphs = _paragraphs(stream, file)
        return "line" if next(paragraphs, None) is None or next(paragraphs, None) is None else "paragraph"


def _paragraphs(stream: BufferedReader, file: RowFile) -> Iterator[tuple[int, bytes]]:
    """The texts between blank lines, each with the number of its first line."""
    begun, size, held = 0, 0, list[bytes]()
    for number, raw in lines_of(stream, file):
        if raw.strip():
            begun, size = (begun, size + len(raw)) if held else (number, len(raw))
            check_size(size, file, begun)
            held.append(raw)
        elif held:
            yield begun, b"".join(held)
            held = []
    if held:
        yield begun, b"".join(held)


def _text(raw: bytes, first: bool) -> Mapping[str, object]:
    return {"text": text_of(raw, first=first).replace("\r\n", "\n").strip("\n")}
