"""Tables: what parts their cells, and the sheets of workbooks."""

from __future__ import annotations

import datetime
import io
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import datasets
import pyarrow
import pytest
from openpyxl import Workbook
from pyarrow import parquet

from loraft import errors
from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.rows.class_names import NumberedClass
from loraft.rows.raw_rows import RowsRead, read_rows


def read(path: Path, **source: Any) -> RowsRead:
    return read_rows(DataSource(path=str(path), **source))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("prompt;completion", "a, b;c"),
        ('"prompt";"completion"', '"a, b";"c"'),
        ("\nprompt\tcompletion", "a, b\tc"),
        ("prompt,completion", '"a, b",c'),
        ('prompt,completion,"x;y;z"', '"a, b",c,'),
        ("prompt;completion;in, out", "a, b;c;x, y"),
    ],
)
def test_the_header_tells_what_parts_the_cells(tmp_path: Path, header: str, row: str) -> None:
    (tmp_path / "x.csv").write_text(f"{header}\n{row}\n{row}\n")
    rows = read(tmp_path / "x.csv").rows
    assert [(row.values["prompt"], row.values["completion"]) for row in rows] == [("a, b", "c")] * 2


@pytest.mark.parametrize("rows", ["1;2,3", "1"])
def test_a_table_that_could_be_parted_in_two_ways_is_refused(tmp_path: Path, rows: str) -> None:
    (tmp_path / "x.csv").write_text(f"prompt;a,completion\n{rows}\n")
    with pytest.raises(DataError, match="commas and semicolons") as caught:
        read(tmp_path / "x.csv")
    assert caught.value.problems[0].where == f"{tmp_path / 'x.csv'}:1"
    (tmp_path / "x.tsv").write_text("prompt;a\tcompletion,b\n1;2\t3\n")
    assert read(tmp_path / "x.tsv").rows[0].values == {"prompt;a": "1;2", "completion,b": "3"}


@pytest.mark.parametrize("between", ["", "\n", " \n\t\n"])
def test_a_quote_of_text_does_not_make_one_row_of_two(tmp_path: Path, between: str) -> None:
    """Sentences of one speech, as corpora have them: a quote opens in one and closes in the next."""
    (tmp_path / "x.tsv").write_text(f'source\ttarget\n"I came.\tIch kam.\n{between}I saw."\tIch sah.\n"a\nb"\tc\n')
    found = read(tmp_path / "x.tsv")
    assert [(problem.where, bool(problem.remedy)) for problem in found.problems] == [(f"{tmp_path / 'x.tsv'}:2", True)]
    assert [row.values for row in found.rows] == [{"source": "a\nb", "target": "c"}]
    (tmp_path / "x.csv").write_text('source,target\n"I came, saw\nand won",c\n')
    assert read(tmp_path / "x.csv").rows[0].values["source"] == "I came, saw\nand won"


def book(path: Path, *sheets: list[list[object]]) -> Path:
    made = Workbook()
    made.remove(made.active)
    for number, rows in enumerate(sheets, start=1):
        sheet = made.create_sheet(f"S{number}")
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


def test_cells_are_the_text_that_csv_has_and_rows_have_their_numbers(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 2, 3)
    rows = [[], ["text", "label", "note"], ["a", 3, None], [], ["b", 3.5, True], [day, 4.0, day.replace(hour=7)]]
    found = read(book(tmp_path / "x.xlsx", rows)).rows
    assert [tuple(row.values.values()) for row in found] == [
        ("a", "3", ""),
        ("b", "3.5", "TRUE"),
        ("2026-02-03", "4", "2026-02-03 07:00:00"),
    ]
    assert [row.where for row in found] == [f"{tmp_path / 'x.xlsx'}: row {number}" for number in (3, 5, 6)]


def test_bad_rows_of_a_sheet_are_problems_beside_the_good_ones(tmp_path: Path) -> None:
    rows: list[list[object]] = [["text", "label"], ["a", "b"], ["a", "b", "c"], ["#N/A", "b"], ["a", "b", None]]
    found = read(book(tmp_path / "x.xlsx", rows))
    assert len(found.rows) == 2
    assert [problem.where for problem in found.problems] == [f"{tmp_path / 'x.xlsx'}: row {n}" for n in (3, 4)]
    assert "formula failed" in found.problems[1].message


def test_of_several_sheets_one_is_named(tmp_path: Path) -> None:
    rows: list[list[object]] = [["text"], ["a"]]
    path = book(tmp_path / "x.xlsx", rows, [], [["text"], ["b"]])
    with pytest.raises(DataError, match="S1, S3"):
        read(path)
    (row,) = read(path, name="S3").rows
    assert (row.values, row.where) == ({"text": "b"}, f"{path} S3: row 2"), "a place is a row's name, and S1 has it too"
    with pytest.raises(DataError, match="no sheet 'S9'"):
        read(path, name="S9")
    assert len(read(book(tmp_path / "one.xlsx", [], rows)).rows) == 1


def test_a_sheet_is_read_to_its_end_whatever_size_it_says(tmp_path: Path) -> None:
    told = book(tmp_path / "x.xlsx", [["text", "label"], *([f"text {n}", "a"] for n in range(4))])
    with ZipFile(told) as parts, ZipFile(tmp_path / "y.xlsx", "w") as others:
        for name in parts.namelist():
            others.writestr(name, parts.read(name).replace(b'ref="A1:B5"', b'ref="A1:A2"'))
    assert [row.values for row in read(tmp_path / "y.xlsx").rows] == [row.values for row in read(told).rows]


def test_a_map_of_parquet_spoils_its_row_alone(tmp_path: Path) -> None:
    """Arrow refuses all rows for one map with a key twice, and fails where keys are no texts."""
    by_place = pyarrow.struct([("at", pyarrow.int64()), ("of", pyarrow.string())])
    schema = pyarrow.schema([
        ("text", pyarrow.string()),
        ("facts", pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string())))),
        ("places", pyarrow.map_(by_place, pyarrow.string())),
        ("numbers", pyarrow.map_(pyarrow.int64(), pyarrow.string())),
    ])  # fmt: skip
    rows = [
        {"text": "a", "facts": [("x", [[("y", "1"), ("z", None)], []])], "places": [({"at": 1}, "p")], "numbers": []},
        {"text": "b", "facts": [("x", [[("y", "1"), ("y", "2")]])], "places": None, "numbers": None},
        {"text": "c", "facts": [], "places": [], "numbers": [(7, "q")]},
        {"text": "d", "facts": None, "places": None, "numbers": None},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    found = read(path)
    assert [row.values for row in found.rows] == [
        {"text": "a", "facts": {"x": [{"y": "1"}, {}]}, "places": [[{"at": 1}, "p"]], "numbers": []},
        {"text": "c", "facts": {}, "places": [], "numbers": [[7, "q"]]},
        {"text": "d", "facts": None, "places": None, "numbers": None},
    ]
    (problem,) = found.problems
    assert (problem.where, problem.message) == (f"{path}: row 2", "has the key 'y' twice in one object")


def test_what_is_no_workbook_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = book(tmp_path / "x.xlsx", [["text"], ["a"]]).read_bytes()
    no_sheets = io.BytesIO()
    with ZipFile(tmp_path / "x.xlsx") as parts, ZipFile(no_sheets, "w") as others:
        for name in parts.namelist():
            content = parts.read(name)
            others.writestr(name, re.sub(rb"<sheet .*?/>", b"", content) if name == "xl/workbook.xml" else content)
    for content in (b"text\na\n", whole[: len(whole) // 2], no_sheets.getvalue()):
        (tmp_path / "y.xlsx").write_bytes(content)
        with pytest.raises(DataError, match=r"no \.xlsx file"):
            read(tmp_path / "y.xlsx")
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="openpyxl") as caught:
        read(tmp_path / "x.xlsx")
    assert caught.value.problems[0].remedy == "pip install 'loraft[xlsx]'"


def test_a_struct_of_parquet_with_two_fields_of_one_name_is_refused_as_what_it_is(tmp_path: Path) -> None:
    numbers = pyarrow.array([1, 2])
    twice = pyarrow.StructArray.from_arrays([numbers, numbers], names=["at", "at"])
    parquet.write_table(pyarrow.table({"facts": twice}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "note",
    [
        "no JSON",
        "[" * 100_000,
        "[]",
        '{"info": null}',
        '{"info": {"features": [1]}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}}}',
        '{"info": {"features": {"label": {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["a"]}}}}}',
    ],
)
def test_a_note_beside_the_rows_of_parquet_that_says_nothing_is_none(tmp_path: Path, note: str) -> None:
    table = pyarrow.table({"text": ["a"], "label": [0]}).replace_schema_metadata({"huggingface": note})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [row.values for row in read(tmp_path / "x.parquet").rows] == [{"text": "a", "label": 0}]


def test_classes_that_datasets_numbers_in_a_parquet_file_have_their_names(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["bad", "good"])
    features = {"text": datasets.Value("string"), "label": kind, "labels": datasets.List(kind)}
    rows = [{"text": "x", "label": number, "labels": [number]} for number in (1, 0, -1, None)]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(tmp_path / "x.parquet")
    found = [row.values for row in read(tmp_path / "x.parquet").rows]
    assert [row["label"] for row in found] == ["good", "bad", None, None], "-1 is the number of no class"
    assert [row["labels"] for row in found][:2] == [["good"], ["bad"]]
    assert isinstance(label := found[0]["label"], NumberedClass)
    assert label.number == 1
    table = parquet.read_table(tmp_path / "x.parquet")
    named = table.set_column(1, "label", pyarrow.array(["fine", "late", "fine", None]))
    parquet.write_table(named.replace_schema_metadata(table.schema.metadata), tmp_path / "y.parquet")
    assert [row.values["label"] for row in read(tmp_path / "y.parquet").rows] == ["fine", "late", "fine", None]
