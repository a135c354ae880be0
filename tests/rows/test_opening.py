"""Whatever rows are compressed by, whatever reads them: the same rows; and what is damaged is an error of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.rows import opening, plain_texts, tables
from loraft.rows.raw_rows import content_of, count_rows, raw_rows, read_rows
from loraft.rows.row import Row
from tests.rows.files import PACKED, PAIRS, TYPES, written


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", TYPES)
def test_every_opening_works_with_every_type(tmp_path: Path, kind: str, packed: str) -> None:
    source = DataSource(path=str(written(tmp_path, kind, packed=packed)))
    assert [row.values for row in read_rows(source).rows] == PAIRS
    assert [row.values for raw in raw_rows(source, streaming=True) if isinstance(row := raw(), Row)] == PAIRS
    assert count_rows(source) == len(PAIRS)
    assert content_of(source)


@pytest.mark.parametrize("packed", PACKED[1:])
def test_a_place_is_the_line_of_what_is_inside(tmp_path: Path, packed: str) -> None:
    path = written(tmp_path, ".jsonl", packed=packed)
    places = [row.where for row in read_rows(DataSource(path=str(path))).rows]
    assert places == [f"{path}:{line}" for line in range(1, len(PAIRS) + 1)]


@pytest.mark.parametrize("packed", PACKED[1:])
def test_a_file_that_is_damaged_or_cut_short_is_refused_whole(tmp_path: Path, packed: str) -> None:
    rows = [{"prompt": f"{number * 7919:x}", "completion": f"{number**5:x}"} for number in range(5000)]
    path = written(tmp_path, ".jsonl", rows, packed=packed)
    whole = path.read_bytes()
    half = len(whole) // 2
    altered = [whole[:half] + b"\0\xff" * 9 + whole[half + 18 :]] if packed != ".zst" else []  # it may have no checksum
    for damaged in (whole[:half], b"no such thing", *altered):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"damaged, cut short, or no \{packed} file") as caught:
            read_rows(DataSource(path=str(path)))
        assert caught.value.problems[0].where == str(path)
        assert caught.value.problems[0].remedy


@pytest.mark.parametrize("packed", PACKED[1:])
def test_nothing_compressed_is_nothing(tmp_path: Path, packed: str) -> None:
    path = written(tmp_path, ".jsonl", [], packed=packed)
    with pytest.raises(DataError, match="is empty"):
        read_rows(DataSource(path=str(path)))


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".txt", ".md"])
def test_a_row_without_an_end_is_refused_by_its_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (opening, tables, plain_texts):
        monkeypatch.setattr(module, "MOST_ROW_BYTES", 1000)
    (tmp_path / f"rows{kind}").write_text('{"text": "b"}\n' + "a" * 2000 + "\n")
    with pytest.raises(DataError, match="is longer than 1,000 bytes") as caught:
        read_rows(DataSource(path=str(tmp_path / f"rows{kind}")))
    assert str(caught.value.problems[0].where).startswith(f"{tmp_path}/rows{kind}:")


@pytest.mark.parametrize("packed", PACKED[1:])
def test_what_becomes_far_more_than_it_is_is_refused(
    tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, ".jsonl", [{"prompt": "x", "completion": "y" * 1000}] * 3000, packed=packed)
    assert len(read_rows(DataSource(path=str(path))).rows) == 3000
    monkeypatch.setattr(opening, "ANY_BYTES", 1000)
    monkeypatch.setattr(opening, "MOST_GROWTH", 20)
    with pytest.raises(DataError, match="as rows never do"):
        read_rows(DataSource(path=str(path)))
