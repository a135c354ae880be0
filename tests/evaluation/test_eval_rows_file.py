"""The file of rows: written as it goes, and never over what is there unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.errors import DataError, DiskFullError
from loraft.evaluation.eval_rows_file import check_rows_file, open_rows_file
from tests.rows.nearly_full import NearlyFull


def test_rows_are_there_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with open_rows_file(path) as file:
        assert file is not None
        file.append([{"a": "é\n"}, {"b": None}])
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": "é\n"}, {"b": None}]
        assert file.rows == 2


def test_no_file_is_wanted() -> None:
    with open_rows_file(None) as file:
        assert file is None


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    empty = tmp_path / "empty"
    empty.touch()
    check_rows_file(empty, None, overwrite=False)
    check_rows_file(tmp_path / "new", None, overwrite=False)
    check_rows_file(taken, None, overwrite=True)
    for path, message in (
        (taken, "holds something already"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/where", "there is no folder"),
    ):
        with pytest.raises(DataError, match=message):
            check_rows_file(path, None, overwrite=False)
    with pytest.raises(DataError, match="is the file of the rows"):
        check_rows_file(taken, str(taken), overwrite=True)
    assert taken.read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told() -> None:
    with open_rows_file(Path("/dev/full")) as file:
        assert file is not None
        with pytest.raises(DiskFullError, match="the disk filled up after 0 rows"):
            file.append([{"a": 1}])


def test_a_disk_that_fills_up_in_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    with open_rows_file(tmp_path / "o.jsonl") as file:
        assert file is not None
        file.append([{"a": 1}])
        file.file = NearlyFull(file.file)  # type: ignore[assignment]
        with pytest.raises(DiskFullError, match="the disk filled up after 1 row"):
            file.append([{"a": 2}, {"a": 3}])
    assert (tmp_path / "o.jsonl").read_text() == '{"a": 1}\n'
