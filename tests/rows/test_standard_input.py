"""Standard input: read once, kept as a file, and known by how it begins."""

from __future__ import annotations

import bz2
import gzip
import io
import sys
from pathlib import Path

import pytest

from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.rows.raw_rows import content_of, count_rows, read_rows, rows_to_answer
from tests.rows.files import PACKED, PAIRS, TYPES, written

pytestmark = pytest.mark.usefixtures("cache")
PIPED = DataSource(path="-")


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", TYPES)
def test_its_type_is_told_by_how_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, packed: str
) -> None:
    path = written(tmp_path, kind, packed=packed)
    piped(monkeypatch, path.read_bytes())
    for _ in range(2):
        assert [row.values for row in read_rows(PIPED).rows] == PAIRS
    assert count_rows(PIPED) == len(rows_to_answer(Path("-"), "texts").rows) == len(PAIRS)
    assert packed or content_of(PIPED) == content_of(DataSource(path=str(path)))


def test_a_place_is_that_of_the_file_that_keeps_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    piped(monkeypatch, b'{"text": "x"}\n{\n')
    found = read_rows(PIPED)
    place, line = (found.problems[0].where or "").rsplit(":", 1)
    assert line == "2"
    assert Path(place).is_relative_to(cache)
    assert Path(place).read_bytes() == b'{"text": "x"}\n{\n'


def test_what_is_piped_in_is_one_file_however_it_is_packed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for content in (b'{"text": "x"}\n', gzip.compress(b'{"text": "x"}\n'), bz2.compress(b'{"text": "x"}\n')):
        piped(monkeypatch, content)
        read_rows(PIPED)
    assert len(list((cache / "sources").iterdir())) == 1
    piped(monkeypatch, gzip.compress(b"x" * 999)[:20])
    with pytest.raises(DataError, match="standard input data: is damaged"):
        read_rows(PIPED)


def test_plain_text_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"one, two\n[three]\n")
    rows = read_rows(DataSource(path="-", text_by="line")).rows
    assert [row.values for row in rows] == [{"text": "one, two"}, {"text": "[three]"}]
    piped(monkeypatch, b"one line\n")
    with pytest.raises(DataError) as caught:
        read_rows(PIPED)
    assert "header of a table" in (caught.value.problems[0].remedy or "")


def test_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"")
    with pytest.raises(DataError, match="standard input data: is empty"):
        read_rows(PIPED)

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(io.BytesIO(b"x")), None):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(DataError, match="nothing is piped in"):
            read_rows(PIPED)
