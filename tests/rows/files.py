"""The same rows in every kind of file that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
from openpyxl import Workbook
from pyarrow import parquet

PAIRS = [
    {"prompt": f"the order {number}, late", "completion": ["it is “here”", "yes\nno", "3.50", ""][number % 4] + " ok"}
    for number in range(7)
]
"""Texts with separators, line ends and signs beyond ASCII."""
TYPES = (".jsonl", ".json", ".csv", "; .csv", ".tsv", ".parquet", ".xlsx")
PACKED = ("", ".gz", ".bz2", ".zst")


def written(folder: Path, kind: str, rows: Sequence[Mapping[str, str]] = PAIRS, packed: str = "") -> Path:
    """The rows as a file of one of `TYPES`, compressed as one of `PACKED` says."""
    separator, _, end = kind.rpartition(" ")
    path = folder / f"rows{end}"
    match end.lower():
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv" | ".tsv":
            mark = separator or {".csv": ",", ".tsv": "\t"}[end.lower()]
            with path.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, delimiter=mark)
                table.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case ".xlsx":
            book = Workbook()
            for row in (list(rows[0]), *(list(row.values()) for row in rows)):
                book.active.append(row)
            book.save(path)
    return compressed(path, packed)


def compressed(path: Path, packed: str) -> Path:
    """The file as `packed` says, without the plain one."""
    if not packed:
        return path
    content, target = path.read_bytes(), path.with_name(path.name + packed)
    path.unlink()
    if packed == ".zst":
        with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(target), "wb"), "zstd") as file:
            file.write(content)
    else:
        target.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}[packed](content))
    return target
