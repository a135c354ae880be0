"""Folders, patterns and limits: which files are read, in which order, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.rows.places import files_here
from loraft.rows.raw_rows import content_of, count_rows, raw_rows, read_rows
from tests.rows.files import PAIRS, compressed
from tests.training.building import write_rows


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three files of rows, one of them compressed and one below, among what is none."""
    folder = tmp_path / "shards"
    for name in ("b.jsonl", "A.JSONL", "sub/c.jsonl", ".git/x.jsonl", ".hidden.jsonl", "picture.png", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / name, [{"text": name}])
    compressed(folder / "b.jsonl", ".gz")
    return folder


@pytest.mark.parametrize("pattern", ["", "/**/*.[jJ]*"])
def test_a_folder_and_a_pattern_are_their_files_in_order(shards: Path, pattern: str) -> None:
    source = DataSource(path=f"{shards}{pattern}")
    found = read_rows(source)
    assert [row.where for row in found.rows] == [
        f"{shards}/{name}:1" for name in ("A.JSONL", "b.jsonl.gz", "sub/c.jsonl")
    ]
    (note,) = found.notes
    assert "3 files are read" in note
    assert (".png" in note) == (pattern == "")
    assert count_rows(source) == len(list(raw_rows(source))) == 3


def test_a_name_with_signs_of_patterns_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "a[1].jsonl", [{"text": "x"}])
    write_rows(tmp_path / "a1.jsonl", [{"text": "y"}])
    (row,) = read_rows(DataSource(path=str(tmp_path / "a[1].jsonl"))).rows
    assert row.values == {"text": "x"}


def test_a_change_of_any_file_changes_what_tells_the_rows(shards: Path) -> None:
    source = DataSource(path=str(shards))
    told = [content_of(source)]
    write_rows(shards / "sub/c.jsonl", [{"text": "other"}])
    told.append(content_of(source))
    (shards / "sub/c.jsonl").rename(shards / "sub/d.jsonl")
    told.append(content_of(source))
    (shards / "picture.png").write_text("other")
    assert content_of(source) == told[-1]
    assert len(set(told)) == 3


def test_a_bad_file_among_good_ones_is_named(shards: Path) -> None:
    (shards / "sub/c.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty") as caught:
        read_rows(DataSource(path=str(shards)))
    assert caught.value.problems[0].where == f"{shards}/sub/c.jsonl"


@pytest.mark.parametrize(("limit", "more"), [(1, True), (6, True), (7, False), (99, False)])
def test_a_limit_takes_the_first_rows_bad_ones_among_them(tmp_path: Path, limit: int, more: bool) -> None:
    path = write_rows(tmp_path / "a.jsonl", PAIRS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "no JSON", *lines[2:]]))
    source = DataSource(path=str(path), limit=limit)
    found = read_rows(source)
    assert len(found.rows) + len(found.problems) == min(limit, 7) == count_rows(source) == len(list(raw_rows(source)))
    assert len(found.problems) == (limit > 1)
    assert (["there are more" in note for note in found.notes] == [True]) == more
    assert len(read_rows(source, most=3).rows) == min(limit, 3) - (limit > 1)


def test_files_here_are_those_that_an_output_must_not_replace(shards: Path) -> None:
    assert files_here(str(shards / "sub/*.jsonl")) == files_here(f"file://{shards}/sub/c.jsonl")
    assert files_here(str(shards)) == [shards]
    assert files_here("https://host/a.jsonl") == files_here("some/set") == []


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saved_to_disk_is_read_once_the_remedy_was_followed(
    tmp_path: Path, splits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    (datasets.DatasetDict(train=rows, test=rows) if splits else rows).save_to_disk("saved")
    with pytest.raises(DataError, match="save_to_disk") as caught:
        read_rows(DataSource(path="saved"))
    eval((caught.value.problems[0].remedy or "").partition("in Python: ")[2])
    assert len(read_rows(DataSource(path="rows.parquet")).rows) == 2
