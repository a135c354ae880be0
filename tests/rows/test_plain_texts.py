"""Plain texts: a file, a paragraph or a line is a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.sections import DataSource
from loraft.rows.raw_rows import read_rows, text_by_of

BOOK = "\ufeffOne\r\nmore\r\n\r\n  \r\nTwo \u2028 still\n\n\n\nThree"


def read(path: Path, **source: object) -> list[tuple[object, str]]:
    found = read_rows(DataSource.model_validate({"path": str(path), **source}))
    return [(row.values["text"], row.where.removeprefix(f"{path}:")) for row in found.rows]


@pytest.mark.parametrize(
    ("text_by", "rows"),
    [
        ("file", [("One\nmore\n\n  \nTwo \u2028 still\n\n\n\nThree", "1")]),
        ("paragraph", [("One\nmore", "1"), ("Two \u2028 still", "5"), ("Three", "9")]),
        ("line", [("One", "1"), ("more", "2"), ("Two \u2028 still", "5"), ("Three", "9")]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.MD"])
def test_what_a_row_is(tmp_path: Path, name: str, text_by: str, rows: list[tuple[str, str]]) -> None:
    (tmp_path / name).write_bytes(BOOK.encode())
    assert read(tmp_path / name, text_by=text_by) == rows


@pytest.mark.parametrize(
    ("text", "by"), [(BOOK, "paragraph"), ("\n\na\nb\n\n", "line"), ("a\nb", "line"), ("a\n\nb", "paragraph")]
)
def test_auto_is_the_paragraph_where_blank_lines_part_them_and_else_the_line(
    tmp_path: Path, text: str, by: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    source = DataSource(path=str(path))
    assert text_by_of(source) == by
    (note,) = read_rows(source).notes
    assert f"a row is a {by}" in note
    assert read(path) == read(path, text_by=by)


def test_auto_is_the_file_in_a_folder_and_in_a_pattern(tmp_path: Path) -> None:
    for name in ("b.md", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one\n\ntwo\n")
    for place in (tmp_path, tmp_path / "**/*"):
        found = read_rows(DataSource(path=str(place)))
        assert sorted(row.where for row in found.rows) == [f"{tmp_path}/b.md:1", f"{tmp_path}/sub/a.txt:1"]
        assert {row.values["text"] for row in found.rows} == {"one\n\ntwo"}
        assert any("a row is a file" in note for note in found.notes)


@pytest.mark.parametrize("text_by", ["file", "paragraph", "line"])
def test_c46_bytes_that_are_no_text_spoil_their_row(tmp_path: Path, text_by: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\nb\xffd\n\nalso \0 bad\n\ngood\n")
    found = read_rows(DataSource.model_validate({"path": str(tmp_path / "a.txt"), "text_by": text_by}))
    assert len(found.rows) == (0 if text_by == "file" else 2)
    lines = [1] if text_by == "file" else [3, 5]
    assert [problem.where for problem in found.problems] == [f"{tmp_path / 'a.txt'}:{line}" for line in lines]
