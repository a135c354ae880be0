"""Files to rows, each with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from loraft.config.sections import DataSource
from loraft.errors import DataError
from loraft.rows.fields import Fields, class_label
from loraft.rows.raw_rows import RowsRead, count_rows, raw_rows, read_rows
from loraft.rows.row import Row


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path | str) -> RowsRead:
    return read_rows(DataSource(path=str(path)))


def test_jsonl_rows_know_their_physical_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '\ufeff{"text": "one"}\n\n{"text": "two\u2028two"}\r\n{"text": "three"}')
    rows = read(path).rows
    assert [(row.values["text"], row.where) for row in rows] == [
        ("one", f"{path}:1"),
        ("two\u2028two", f"{path}:3"),
        ("three", f"{path}:4"),
    ]


def test_c46_bad_lines_of_jsonl_are_problems_beside_the_good_ones(tmp_path: Path) -> None:
    bad = [b"{", b"[1]", b"null", b'"x"', b"3", b'{"text": "\xff"}', b'{"te\x00xt": 1}', b"[" * 100_000, b"9" * 10_000]
    path = written(tmp_path, "a.jsonl", b"\n".join([b'{"text": "good"}', *bad, b'{"text": "good"}']))
    found = read(path)
    assert [row.where for row in found.rows] == [f"{path}:1", f"{path}:{len(bad) + 2}"]
    assert [problem.where for problem in found.problems] == [f"{path}:{line}" for line in range(2, len(bad) + 2)]


def test_json_rows_are_numbered(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[{"text": "one"}, 3, {"text": "two", "more": 1}]')
    found = read(path)
    assert [row.where for row in found.rows] == [f"{path}: row 1", f"{path}: row 3"]
    assert found.problems[0].where == f"{path}: row 2"
    assert found.columns == ("text", "more")


REPEATED = [
    ('{"text": "a", "text": "b"}', "'text'"),
    ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content'"),
    ('{"a": 1, "b": {"c": [[{"d": 1, "e": 2, "d": 1}]]}}', "'d'"),
]


@pytest.mark.parametrize(("row", "key"), REPEATED)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_key_that_stands_twice_spoils_its_row_by_name(row: str, key: str, ending: str, tmp_path: Path) -> None:
    rows = ['{"text": "good", "more": {"text": "x"}}', row, '{"text": "good"}']
    content = "\n".join(rows) if ending == "jsonl" else f"[{', '.join(rows)}]"
    path = written(tmp_path, f"a.{ending}", content)
    found = read(path)
    assert [row.values["text"] for row in found.rows] == ["good", "good"]
    (problem,) = found.problems
    assert problem.where == (f"{path}:2" if ending == "jsonl" else f"{path}: row 2")
    assert key in problem.message
    assert problem.remedy


def test_what_is_no_json_behind_a_key_that_stands_twice_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not JSON"):
        read(written(tmp_path, "a.json", '[{"a": 1, "a": 2}, {]'))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": [{"text": "x"}]}', "'data'"),
        ('{"text": "x"}\n{"text": "y"}', "name the file a.jsonl"),
        ('[\n{"text": }]', "line 2"),
        ('"x"', "list of objects"),
        ("[]", "no rows"),
        (b"\xff\xfe", "UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_no_list_of_objects(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_csv_rows_know_their_physical_line(tmp_path: Path) -> None:
    content = '\ufeffprompt,completion\r\na,"b\nb\nb"\r\n\r\n"c, c","d ""d"""\r\ne,f'
    path = written(tmp_path, "a.csv", content)
    rows = read(path).rows
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:6", f"{path}:7"]
    assert rows[0].values == {"prompt": "a", "completion": "b\nb\nb"}
    assert rows[1].values == {"prompt": "c, c", "completion": 'd "d"'}


def test_the_line_after_a_blank_one_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "\nprompt,completion\n\n\na,b\n")
    assert [row.where for row in read(path).rows] == [f"{path}:5"]


def test_c46_bad_rows_of_csv_are_problems_beside_the_good_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"prompt,completion\na,b\na,b,c\na\n\xff,b\na,b\n")
    found = read(path)
    assert [row.where for row in found.rows] == [f"{path}:2", f"{path}:6"]
    assert [problem.where for problem in found.problems] == [f"{path}:3", f"{path}:4", f"{path}:5"]


@pytest.mark.parametrize("cell", ['"b', '"b" c'])
def test_a_quote_that_does_not_end_where_its_cell_does_spoils_the_file_from_there_on(tmp_path: Path, cell: str) -> None:
    """It is no row that could be left out: the rows behind it would be, and nobody would count them."""
    path = written(tmp_path, "a.csv", f"prompt,completion\na,b\nc,d\na,{cell}\nc,d\n")
    for act in (read_rows, count_rows):
        with pytest.raises(DataError) as refused:
            act(DataSource(path=str(path)))
        assert refused.value.problems[0].where == f"{path}:4"
    assert len(read_rows(DataSource(path=str(path), limit=1)).rows) == 1


def test_a_long_field_of_csv_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text\n" + "x" * 1_000_000)
    assert len(str(read(path).rows[0].values["text"])) == 1_000_000


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        read(written(tmp_path, "a.csv", "text,text\na,b\n"))


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "x"}]], "id": [1]}), path)
    (row,) = read(path).rows
    assert row.values["messages"] == [{"role": "user", "content": "x"}]
    assert row.where == f"{path}: row 1"
    with pytest.raises(DataError, match="Parquet"):
        read(written(tmp_path, "b.parquet", "PAR1 is not enough"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_file_that_is_missing_empty_or_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / name)
    with pytest.raises(DataError, match="empty"):
        read(written(tmp_path, name, ""))
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no file of rows"):
        read(tmp_path / "folder" / name)


def test_files_of_another_type_are_told_what_to_become(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jsonl"):
        read(written(tmp_path, "a.docx", "x"))


def test_a_file_of_nothing_but_a_header_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        read(written(tmp_path, "a.csv", "text\n"))


def test_the_builtin_splits() -> None:
    train, evaluation = (read_rows(DataSource(path="builtin:tickets", split=split)) for split in (None, "eval"))
    assert (len(train.rows), len(evaluation.rows)) == (800, 200)
    assert "builtin:tickets" in train.rows[0].where
    for source in (DataSource(path="builtin:nothing"), DataSource(path="builtin:tickets", split="test")):
        with pytest.raises(DataError, match=r"train|tickets"):
            read_rows(source)


@pytest.fixture
def of_hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of the library of datasets, which has one of three rows, and of others an error."""
    asked: list[dict[str, Any]] = []
    classes = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    rows = [{"text": f"row {label}", "label": label} for label in (1, 0, -1)]

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append({"path": path, "name": name, **options})
        if path in ERRORS:
            raise ERRORS[path]
        whole = datasets.Dataset.from_list(rows, features=features)
        return whole.to_iterable_dataset() if options.get("streaming") else whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def _failed(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ERRORS = {
    "some/configs": ValueError("Config name is missing.\nPlease pick one: ['a', 'b']\nExample of usage:\n\t`load()`"),
    "some/bad": _failed(
        DatasetGenerationError("An error occurred while generating the dataset"), ValueError("JSON error in row 5")
    ),
    "some/missing": DatasetNotFoundError("Dataset 'some/missing' doesn't exist on the Hub or cannot be accessed."),
}


def test_a_dataset_of_the_hub(of_hub: list[dict[str, Any]]) -> None:
    assert len(read_rows(DataSource(path="some/set", name="main", split="validation")).rows) == 3
    assert of_hub.pop() == {"path": "some/set", "name": "main", "split": "validation"}
    places = [read_rows(DataSource(path="some/set", split=split)).rows[0].where for split in (None, "test")]
    assert places == ["some/set: row 1", "some/set test: row 1"], "a place is a row's name, and both may be named"


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_that_a_dataset_of_the_hub_numbers_have_their_names(
    of_hub: list[dict[str, Any]], streaming: bool
) -> None:
    found = [cast("Row", raw()).values for raw in raw_rows(DataSource(path="some/set"), streaming=streaming)]
    assert [row["label"] for row in found] == ["good", "bad", None], "-1 is the library's number of no class"
    assert [class_label(Fields(Row(row, "x"), {})).number for row in found[:2]] == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "said", "asks"),
    [
        ("some/configs", "Config name is missing. Please pick one: ['a', 'b']", "data.name"),
        ("some/bad", "JSON error in row 5", "data.name"),
        ("some/missing", "doesn't exist on the Hub or cannot be accessed.", "perhaps the Hub"),
    ],
)
def test_why_a_dataset_of_the_hub_cannot_be_had_is_told_in_a_line(
    of_hub: list[dict[str, Any]], path: str, said: str, asks: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert problem.message.endswith(said)
    assert asks in str(problem.remedy)


def test_a_part_of_a_file_that_has_none_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "one"}')
    (of_split, of_name) = read_rows(DataSource(path=str(path), split="test", name="main")).notes
    (of_builtin,) = read_rows(DataSource(path="builtin:tickets", name="main")).notes
    assert "name main" in of_builtin
    assert ("split test" in of_split, "name main" in of_name) == (True, True)
    assert not read(path).notes


def test_a_dataset_of_the_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "x"}
        raise ConnectionError("Server disconnected")

    breaks_off = datasets.IterableDataset.from_generator(broken)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: breaks_off)
    rows = raw_rows(DataSource(path="some/set"), streaming=True)
    assert isinstance(next(rows)(), Row)
    with pytest.raises(DataError, match="some/set data: gives no more rows: Server disconnected"):
        next(rows)


def test_rows_of_jsonl_survive_the_round_trip(tmp_path: Path) -> None:
    values = [{"text": text} for text in ("plain", "日本語", 'quote " and \\', "tab\t", "🙂")]
    path = written(tmp_path, "a.jsonl", "\n".join(json.dumps(value, ensure_ascii=False) for value in values))
    assert [row.values for row in read(path).rows] == values


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.jsonl", b'{"prompt": "\xff"}', "Save the file as UTF-8."),
        ("a.csv", b"prompt\n\xff\n", "Save the file as UTF-8."),
        ("a.jsonl", b'{"prompt": 1} {"prompt": 2}', "Write one object a line, and nothing behind it."),
        ("a.jsonl", b"{'prompt': 1}", 'Write objects such as {"prompt": "…", "completion": "…"}, with double quotes.'),
        ("a.csv", b"prompt\na,b\n", "Put texts with separators or line ends in double quotes."),
    ],
)
def test_a_row_that_cannot_be_read_is_told_what_to_do(tmp_path: Path, name: str, content: bytes, remedy: str) -> None:
    (tmp_path / name).write_bytes(content)
    (problem,) = read_rows(DataSource(path=str(tmp_path / name))).problems
    assert problem.remedy == remedy


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("levels", [100, 700, 5000])
def test_a_row_that_is_nested_deeper_than_anything_walks_through_is_a_bad_row(
    tmp_path: Path, levels: int, kind: str
) -> None:
    deep = '{"a": ' * levels + "1" + "}" * levels
    row = f'{{"prompt": "a", "completion": "b", "more": {deep}}}'
    path = tmp_path / f"rows.{kind}"
    path.write_text(row + "\n" if kind == "jsonl" else f"[{row}]")
    if kind == "json":
        with pytest.raises(DataError, match="nested too deeply"):
            read_rows(DataSource(path=str(path)))
    else:
        (problem,) = read_rows(DataSource(path=str(path))).problems
        assert "nested too deeply" in problem.message
