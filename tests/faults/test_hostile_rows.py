"""Rows and files of rows that are wrong in every way that chance finds, and files that grow when they are opened."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from loraft.config.schema import RunConfig
from loraft.config.sections import DataSource
from loraft.dataset.build import prepare
from loraft.errors import DataError
from loraft.rows.raw_rows import read_rows
from tests.cli.running import loraft, refused
from tests.faults.conftest import Trial
from tests.rows.files import PACKED, TYPES, written
from tests.tiny import save_tiny, tiny_tokenizer

ROW = "a mutated row: read, or refused by file and line; skipped, it is counted"
FILE = "a mutated file of rows, compressed or not: read, or refused by its name"
GROWS = "a file that becomes far more than it is, or a row without an end: refused in 1 GB"
GOOD: dict[str, dict[str, Any]] = {
    "causal_lm": {"messages": [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "fine"}]},
    "seq2seq_lm": {"source": "the order is late", "target": "the customer said"},
    "seq_cls": {"text": "the order is late", "label": "late"},
    "preference": {"prompt": "how are you", "chosen": "fine, thanks", "rejected": "late"},
}
JUNK: tuple[Any, ...] = (
    *(None, 3, -1, 10**400, True, [], {}, "", " ", "\x00", "\ud800", "\u202e", [1], {"role": 1}, "x" * 50_000, -1e400),
    *([[[[[[]]]]]], {"a": {"b": {"c": None}}}, "<|im_end|>", "{{ 7 * 7 }}", "../../etc/passwd", ["user", "assistant"]),
)


def mutated(good: dict[str, Any], chance: random.Random) -> bytes:
    """A row with a field, a part of one, or some bytes changed."""
    row = json.loads(json.dumps(good))
    match chance.randrange(6):
        case 0:
            row[chance.choice([*row])] = chance.choice(JUNK)
        case 1 if "messages" in row:
            row["messages"][chance.randrange(2)][chance.choice(["role", "content", "train", "tools"])] = chance.choice(
                JUNK
            )
        case 1:
            del row[chance.choice([*row])]
        case 2:
            row[chance.choice(["id", "labels", "text", "messages", "tools", "label", "source"])] = chance.choice(JUNK)
        case 3:
            return json.dumps(chance.choice(JUNK)).encode()
        case _:
            raw = bytearray(json.dumps(row).encode())
            for _ in range(chance.randint(1, 4)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            return bytes(raw).replace(b"\n", b" ").replace(b"\r", b" ")
    return json.dumps(row).encode()


@pytest.mark.slow
@pytest.mark.parametrize("task", GOOD)
def test_c46_a_mutated_row_is_read_or_refused_by_its_line(
    task: str, trial: Trial, torture: bool, tmp_path: Path
) -> None:
    chance, tokenizer, path = random.Random(task), tiny_tokenizer(), tmp_path / "rows.jsonl"
    good = json.dumps(GOOD[task]).encode()
    data = {"train": str(path), "eval": None, "max_length": 100_000, "labels": ["late", "early"]}

    def read(**how: str) -> Any:
        values = {"task": task, "model": {"name_or_path": "x"}, "data": {**data, **how}}
        return prepare(RunConfig.model_validate(values), tokenizer).report.sources[0]

    refusals = 0
    for number in range(2_500 if torture else 250):
        with trial(ROW):
            path.write_bytes(good + b"\n" + (line := mutated(GOOD[task], chance)) + b"\n")
            counts = read(on_bad_row="skip")
            assert counts.read == 1 + bool(line.strip()), line
            assert counts.read == counts.kept + counts.bad + counts.untrained, line
            try:
                read()
            except DataError as error:
                refusals += 1
                told = [problem.where or "" for problem in error.problems]
            else:
                told = []
            assert (counts.bad == 0 and not told) or f"{path}:2" in told, (number, line, told)
    assert refusals > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_c46_a_mutated_file_is_read_or_refused_by_its_name(
    kind: str, trial: Trial, torture: bool, tmp_path: Path
) -> None:
    chance = random.Random(kind)
    for packed in PACKED:
        path = written(tmp_path, kind, packed=packed)
        whole = path.read_bytes()
        for _ in range(100 if torture else 10):
            raw = bytearray(whole)
            for _ in range(chance.randint(1, 5)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            path.write_bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.3 else raw)
            with trial(FILE):
                assert str(path) in said_of(path)


def said_of(path: Path) -> str:
    """The refusal of a file; its name where it is read."""
    try:
        read_rows(DataSource(path=str(path)))
    except DataError as error:
        return str(error)
    return str(path)


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def rows_that_repeat(size: int) -> bytes:
    line = json.dumps({"prompt": "x" * 50_000, "completion": "y"}).encode() + b"\n"
    return line * (size // len(line))


def grown_workbook() -> bytes:
    """A workbook one of whose parts is zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as book:
        with book.open("xl/sharedStrings.xml", "w", force_zip64=True) as part:
            for _ in range(150):
                part.write(bytes(1_000_000))
        book.writestr("[Content_Types].xml", "<x/>")
    return stream.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lines in gzip": ("rows.jsonl.gz", lambda: gzip.compress(rows_that_repeat(110_000_000), 9)),
    "one line in gzip": ("rows.jsonl.gz", lambda: gzip.compress(b'{"text": "' + b"a" * 80_000_000, 1)),
    "one line in bzip2": ("rows.jsonl.bz2", lambda: bz2.compress(b"a" * 70_000_000, 1)),
    "one line in zstandard": ("rows.jsonl.zst", lambda: zstd(b"a" * 80_000_000)),
    "a list in zstandard": ("rows.json.zst", lambda: zstd(b"[" + b" " * 120_000_000 + b"]")),
    "a cell": ("rows.csv", lambda: b'text\n"' + (b"a" * 999 + b"\n") * 70_000 + b'"\n'),
    "a line of cells": ("rows.csv", lambda: b"text\n" + b"a" * 70_000_000 + b"\n"),
    "a text": ("rows.txt", lambda: b"a" * 70_000_000),
    "a paragraph": ("rows.md", lambda: b"a\n\nb\n" + (b"a" * 999 + b"\n") * 70_000),
    "a table in gzip": ("rows.parquet.gz", lambda: gzip.compress(bytes(150_000_000), 1)),
    "a workbook": ("rows.xlsx", grown_workbook),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_c46_what_grows_is_refused(bomb: str, trial: Trial, tmp_path: Path) -> None:
    name, made = BOMBS[bomb]
    (tmp_path / name).write_bytes(made())
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with trial(GROWS):
        with pytest.raises(DataError, match=r"as rows never do|is longer than") as caught:
            read_rows(DataSource(path=str(tmp_path / name)))
        assert name in str(caught.value.problems[0].where)
        assert time.process_time() - began < 30
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9


@pytest.mark.slow
def test_c46_so_through_the_command_line(tmp_path: Path, trial: Trial) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "rows.jsonl.gz").write_bytes(BOMBS["one line in gzip"][1]())
    (tmp_path / "c.yaml").write_text("model: {name_or_path: model}\ndata: {train: rows.jsonl.gz}\n")
    with trial(GROWS):
        assert "rows.jsonl.gz" in refused(loraft("check", "c.yaml", cwd=tmp_path))
