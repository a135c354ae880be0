"""Files of rows: each whole or absent, answers gone on with, nothing of somebody else's touched."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from loraft.errors import DataError, DiskFullError
from loraft.io.jsonl import AskedRows, JsonLines, check_jsonl, open_answers, open_jsonl
from tests.io.nearly_full import NearlyFull

ADDED = ("completion", "finish_reason")
ROWS: list[dict[str, object]] = [{"id": n, "prompt": f"é {n}\n{{}}\u2028"} for n in range(5)]


def asked(answered_by: str | None = "model", rows: Sequence[dict[str, object]] = ROWS) -> AskedRows:
    return AskedRows(rows, ADDED, answered_by)


def check(path: Path, questions: Path, rows: Sequence[dict[str, object]] = ROWS, *, overwrite: bool = False) -> None:
    check_jsonl(path, reads=[questions], asked=asked(None, rows), overwrite=overwrite)


def answer(file: JsonLines, *answers: str) -> None:
    """Answer the next rows."""
    file.append(asked().answered(file.rows, [(text, "stop") for text in answers]))


def written(path: Path, count: int) -> bytes:
    """A file with the answers to the first rows."""
    with open_answers(path, asked(), overwrite=True) as file:
        answer(file, *(f"answer {row['id']} ü" for row in ROWS[:count]))
    return path.read_bytes()


def test_a_row_is_the_row_that_was_asked_and_its_answer(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in written(tmp_path / "o", 3).decode().split("\n")[:-1]]
    assert rows[1] == {**ROWS[1], "completion": "answer 1 ü", "finish_reason": "stop", "answered_by": "model"}
    assert [row["id"] for row in rows] == [0, 1, 2]


def test_wherever_a_file_is_cut_the_rest_is_written_and_no_row_is_lost_or_repeated(tmp_path: Path) -> None:
    """Every byte at which a kill can cut it."""
    whole = written(tmp_path / "whole", 5)
    for cut in range(len(whole) + 1):
        (tmp_path / "o").write_bytes(whole[:cut])
        with open_answers(tmp_path / "o", asked(), overwrite=False) as file:
            assert file.rows == whole[:cut].count(b"\n")
            answer(file, *(f"answer {row['id']} ü" for row in ROWS[file.rows :]))
            assert file.rows == 5
        assert (tmp_path / "o").read_bytes() == whole


OTHERS = {
    "notes": b"my notes",
    "notes with lines": b"my\nnotes\n",
    "binary": bytes(range(256)),
    "zeros": b"\0" * 40,
    "other rows": json.dumps({"id": 7, "prompt": "x", "completion": "y"}).encode() + b"\n",
    "other rows, cut": b'{"id": 7, "pro',
    "the questions": b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS),
    "the first question": json.dumps(ROWS[0], ensure_ascii=False).encode() + b"\n",
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path, other: str) -> None:
    path, questions = tmp_path / "o", tmp_path / "q"
    questions.touch()
    path.write_bytes(OTHERS[other])
    with pytest.raises(DataError, match=r"is no answer to the row of its number(.|\n)*`overwrite`"):
        check(path, questions)
    with pytest.raises(DataError), open_answers(path, asked(), overwrite=False):
        pass
    assert path.read_bytes() == OTHERS[other]
    check(path, questions, overwrite=True)
    assert written(path, 5).count(b"\n") == 5


def test_answers_of_another_model_or_to_other_rows_are_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "o", 3)
    questions = tmp_path / "q"
    questions.touch()
    check(tmp_path / "o", questions)
    with (
        pytest.raises(DataError, match=r"o:1 output: was answered by another model"),
        open_answers(tmp_path / "o", asked("another"), overwrite=False),
    ):
        pass
    with pytest.raises(DataError, match="o:2 output: is no answer"):
        check(tmp_path / "o", questions, [ROWS[0], ROWS[2], ROWS[1]])
    with pytest.raises(DataError, match="holds 3 rows, and there are 2 to answer"):
        check(tmp_path / "o", questions, ROWS[:2])
    assert (tmp_path / "o").read_bytes() == before


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    questions = tmp_path / "q"
    questions.write_text("{}")
    for path, message in (
        (tmp_path / "o.csv", r"as JSON Lines, not as .csv(.|\n)*Name it o.jsonl"),
        (Path("/dev/null"), "is no ordinary file"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/o", "there is no folder"),
        (questions, "is a file that this command reads"),
    ):
        with pytest.raises(DataError, match=message):
            check(path, questions, overwrite=True)
    (tmp_path / "link").symlink_to(questions)
    with pytest.raises(DataError, match="is a file that this command reads"):
        check(tmp_path / "link", questions, overwrite=True)
    assert questions.read_text() == "{}"


def test_two_processes_never_write_to_one_file(tmp_path: Path) -> None:
    with (
        open_answers(tmp_path / "o", asked(), overwrite=False),
        pytest.raises(DataError, match="another process is writing"),
        open_answers(tmp_path / "o", asked(), overwrite=True),
    ):
        pass


def test_a_full_disk_is_told_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_answers(tmp_path / "o", asked(), overwrite=False) as file:
        answer(file, "a")
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(DiskFullError, match=r"after 1 row(.|\n)*the same command goes on"):
            answer(file, "b")


def test_a_disk_that_fills_up_in_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    with open_answers(tmp_path / "o", asked(), overwrite=False) as file:
        answer(file, "a")
        file.file = NearlyFull(file.file)  # type: ignore[assignment]
        with pytest.raises(DiskFullError, match="after 1 row"):
            answer(file, "b")
    assert (tmp_path / "o").read_bytes() == written(tmp_path / "one", 1).replace("answer 0 ü".encode(), b"a")
    with open_answers(tmp_path / "o", asked(), overwrite=False) as file:
        assert file.rows == 1


def test_what_json_does_not_know_is_its_text(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "when": date(2026, 1, 2), "half": "\ud800", "none": float("nan")}]
    for _ in range(2):
        with open_answers(tmp_path / "o", asked(rows=rows), overwrite=False) as file:
            if not file.rows:
                file.append(asked(rows=rows).answered(0, [("b", "length")]))
    told = json.loads((tmp_path / "o").read_text())
    assert (told["when"], told["half"], told["completion"]) == ("2026-01-02", "\ud800", "b")


def test_the_windows_that_are_left_begin_with_the_one_that_was_cut_short(tmp_path: Path) -> None:
    for held, left in ((0, [[0, 1], [2, 3], [4]]), (1, [[0, 1], [2, 3], [4]]), (2, [[2, 3], [4]]), (5, [])):
        written(tmp_path / "o", held)
        with open_answers(tmp_path / "o", asked(), overwrite=False) as file:
            assert [list(window) for window in file.windows(5, 2)] == left


def test_rows_that_are_no_answers_are_there_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("what was there")
    with open_jsonl(path) as file:
        file.append([{"a": "é\n"}, {"b": None}])
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": "é\n"}, {"b": None}]
        assert file.rows == 2


def test_a_file_that_begins_anew_is_refused_where_it_holds_something(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    empty = tmp_path / "empty"
    empty.touch()
    check_jsonl(empty, overwrite=False)
    check_jsonl(tmp_path / "new", overwrite=False)
    check_jsonl(taken, overwrite=True)
    for path, message in (
        (taken, "holds something already"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/where", "there is no folder"),
        (tmp_path / "o.parquet", "as JSON Lines, not as .parquet"),
    ):
        with pytest.raises(DataError, match=message):
            check_jsonl(path, overwrite=False)
    with pytest.raises(DataError, match="is a file that this command reads"):
        check_jsonl(taken, reads=[taken], overwrite=True)
    assert taken.read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_told() -> None:
    check_jsonl(Path("/dev/full"), overwrite=False)
    with open_jsonl(Path("/dev/full")) as file, pytest.raises(DiskFullError, match="the disk filled up after 0 rows"):
        file.append([{"a": 1}])


def test_a_pipe_whose_reader_went_away_is_a_broken_pipe(tmp_path: Path) -> None:
    """A pipe that is opened for reading too has itself as a reader: it would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe")
    program = (
        "from pathlib import Path\nfrom loraft.io.jsonl import open_jsonl\n"
        f"with open_jsonl(Path({str(tmp_path / 'pipe')!r})) as file:\n"
        "    for _ in range(3000):\n        file.append([{'row': 'x' * 100}])"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    with (tmp_path / "pipe").open("rb") as reader:
        assert json.loads(reader.readline()) == {"row": "x" * 100}
    assert "BrokenPipeError" in writer.communicate(timeout=60)[1]
