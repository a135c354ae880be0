"""The types of files that rows lie in, by the ends of their names: the one table of them, which loads in no time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Content = Literal["lines of JSON", "JSON", "cells and commas", "cells and tabs", "Parquet", "workbook", "text"]


@dataclass(frozen=True)
class RowType:
    """A type of file.

    Attributes:
        content: How rows lie in it: what reads them goes by it.
        begins: How such a file begins, by which it is known where it has no name; nothing tells the others apart.
    """

    content: Content
    begins: bytes | None = None


ROW_TYPES: Mapping[str, RowType] = {
    ".jsonl": RowType("lines of JSON", b"{"),
    ".json": RowType("JSON", b"["),
    ".csv": RowType("cells and commas"),
    ".tsv": RowType("cells and tabs"),
    ".parquet": RowType("Parquet", b"PAR1"),
    ".xlsx": RowType("workbook", b"PK\x03\x04"),
    ".txt": RowType("text"),
    ".md": RowType("text"),
}

COMPRESSIONS: Mapping[str, bytes] = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd"}
"""What may stand behind the end that tells the type where a file is compressed, and how such a file begins."""


def ends_of_others(*contents: Content) -> tuple[str, ...]:
    """How files of rows end that hold something else than these, or are compressed."""
    return (*(end for end, kind in ROW_TYPES.items() if kind.content not in contents), *COMPRESSIONS)
