"""Files of rows under other names and layouts than ours: read where they can be, or refused for what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from loraft.config.sections import DataSource
from loraft.errors import DataError, Problem
from loraft.rows.raw_rows import content_of, count_rows, read_rows, rows_to_answer
from tests.training.building import write_rows

ROWS = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "e"}]


@pytest.mark.parametrize("kind", [".jsonl", ".JSONL", ".Json", ".CSV", ".PARQUET"])
def test_the_end_of_a_name_may_be_in_capitals(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    match kind.lower():
        case ".jsonl":
            write_rows(path, ROWS)
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".csv":
            path.write_text('prompt,completion\n"a, b",c\nd,e\n')
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    source = DataSource(path=str(path))
    assert [row.values for row in read_rows(source).rows] == ROWS
    assert [row.values for row in rows_to_answer(path, "texts").rows] == ROWS
    assert count_rows(source) == 2
    assert content_of(source)


def refused(path: str | Path) -> Problem:
    for look in (read_rows, count_rows, content_of):
        with pytest.raises(DataError) as error:
            look(DataSource(path=str(path)))
    (problem,) = error.value.problems
    assert problem.remedy
    return problem


PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text", "message", "remedy"),
    [
        ("two.csv", "prompt;a,completion\n1;2,3\n", "commas and semicolons", "name the file .tsv"),
        ("none.csv", "prompt;a,completion\n1,2,3\n4\n", "commas and semicolons", "in double quotes"),
        ("pretty.json", PRETTY, "is not JSON: Extra data", "[ before the first object"),
        ("lines.json", "\n".join(map(json.dumps, ROWS)), "is not JSON: Extra data", "name the file lines.jsonl"),
        ("one.json", json.dumps(ROWS[0], indent=2), "it holds one object", "[ before the object"),
        ("array.jsonl", json.dumps(ROWS), "holds a list", "Name the file array.json."),
        ("array.jsonl", json.dumps(ROWS, indent=2), "holds a list", "Name the file array.json."),
        ("pretty.jsonl", "\n" + PRETTY, "objects of several lines", "in one line"),
    ],
)
def test_another_layout_is_refused_once_for_what_it_is(
    tmp_path: Path, name: str, text: str, message: str, remedy: str
) -> None:
    (tmp_path / name).write_text(text)
    problem = refused(tmp_path / name)
    assert message in problem.message
    assert remedy in (problem.remedy or "")
    assert (problem.where or "").startswith(str(tmp_path / name))


def test_a_first_row_that_is_a_list_is_a_bad_row_alone(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('[1, 2]\n{"prompt": "a", "completion": "b"}\n')
    read = read_rows(DataSource(path=str(tmp_path / "x.jsonl")))
    assert len(read.rows) == len(read.problems) == 1


def test_commas_inside_a_header_of_commas_stay(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"a;b;c",d\n1,2\n')
    (row,) = read_rows(DataSource(path=str(tmp_path / "x.csv"))).rows
    assert row.values == {"a;b;c": "1", "d": "2"}


@pytest.mark.parametrize(
    ("place", "message", "remedy"),
    [
        ("s3://bucket/rows.jsonl", "needs the package s3fs", "pip install s3fs"),
        ("gs:/bucket/rows.jsonl", "needs the package gcsfs", "pip install gcsfs"),
        ("nosuch://bucket/rows.jsonl", "nosuch:// are not read", "Fetch the file"),
        ("https://host/rows", "does not end in a type", "name it as .jsonl"),
        ("memory://nothing.jsonl", "there is no such file", "Check the address"),
        ("memory://nothing*.jsonl", "no file of rows", "end in .jsonl"),
        ("file:///nothing/rows.jsonl", "there is no such file", ""),
        ("folder/*.csv", "no file of rows", "end in .jsonl"),
        ("folder/*.doc", "there are 1 .doc", "end in .jsonl"),
        ("mixed", "1 .csv, 1 .jsonl", "…/*.csv"),
        ("mixed/*", "1 .csv, 1 .jsonl", "…/*.csv"),
        ("empty", "no file of rows", "end in .jsonl"),
        ("folder/A.jsonl", "there is no such file", "folder/a.jsonl"),
        ("folder/c.doc", "files of type .doc are not read", "write it as .jsonl"),
        ("folder/a.gz", "files of type (none), .gz, are not read", ""),
        ("./nothing", "there is no such file", ""),
        ("one/two/three", "there is no such file", ""),
    ],
)
def test_what_is_no_file_is_told_with_what_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "mixed", "empty"):
        Path(folder).mkdir()
    for name in ("folder/a.jsonl", "folder/b.jsonl", "mixed/a.jsonl", "mixed/b.csv", "folder/c.doc", "folder/a.gz"):
        write_rows(Path(name), ROWS)
    problem = refused(place)
    assert message in problem.message
    assert remedy in (problem.remedy or "")
