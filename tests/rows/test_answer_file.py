"""The file of answers: rows whole or absent, nothing of somebody else's touched."""

from __future__ import annotations

import errno
import json
from datetime import date
from pathlib import Path

import pytest

from loraft.errors import DataError, DiskFullError
from loraft.rows.answer_file import check_answer_file, open_answer_file
from tests.rows.nearly_full import NearlyFull

ADDED = ("completion", "finish_reason")
ROWS: list[dict[str, object]] = [{"id": n, "prompt": f"é {n}\n{{}}\u2028"} for n in range(5)]


def written(path: Path, count: int, *, answered_by: str = "model") -> bytes:
    """A file with the answers to the first rows."""
    with open_answer_file(path, ROWS, ADDED, answered_by, overwrite=True) as file:
        file.append([(row, (f"answer {row['id']} ü", "stop")) for row in ROWS[:count]])
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
        with open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=False) as file:
            assert file.rows == whole[:cut].count(b"\n")
            file.append([(row, (f"answer {row['id']} ü", "stop")) for row in ROWS[file.rows :]])
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
    with pytest.raises(DataError, match=r"is no answer to the row of its number(.|\n)*--overwrite"):
        check_answer_file(path, ROWS, questions, ADDED, overwrite=False)
    with pytest.raises(DataError), open_answer_file(path, ROWS, ADDED, "model", overwrite=False):
        pass
    assert path.read_bytes() == OTHERS[other]
    check_answer_file(path, ROWS, questions, ADDED, overwrite=True)
    assert written(path, 5).count(b"\n") == 5


def test_answers_of_another_model_or_to_other_rows_are_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "o", 3)
    questions = tmp_path / "q"
    questions.touch()
    check_answer_file(tmp_path / "o", ROWS, questions, ADDED, overwrite=False)
    with (
        pytest.raises(DataError, match=r"o:1 --output: was answered by another model"),
        open_answer_file(tmp_path / "o", ROWS, ADDED, "another", overwrite=False),
    ):
        pass
    with pytest.raises(DataError, match="o:2 --output: is no answer"):
        check_answer_file(tmp_path / "o", [ROWS[0], ROWS[2], ROWS[1]], questions, ADDED, overwrite=False)
    with pytest.raises(DataError, match="holds 3 rows, and there are 2 to answer"):
        check_answer_file(tmp_path / "o", ROWS[:2], questions, ADDED, overwrite=False)
    assert (tmp_path / "o").read_bytes() == before


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    questions = tmp_path / "q"
    questions.write_text("{}")
    for path, message in (
        (tmp_path / "o.csv", r"as JSON Lines, not as .csv(.|\n)*Name it o.jsonl"),
        (Path("/dev/null"), "is no ordinary file"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/o", "there is no folder"),
        (questions, "is the file of the rows themselves"),
    ):
        with pytest.raises(DataError, match=message):
            check_answer_file(path, ROWS, questions, ADDED, overwrite=True)
    (tmp_path / "link").symlink_to(questions)
    with pytest.raises(DataError, match="is the file of the rows themselves"):
        check_answer_file(tmp_path / "link", ROWS, questions, ADDED, overwrite=True)
    assert questions.read_text() == "{}"


def test_two_processes_never_write_to_one_file(tmp_path: Path) -> None:
    with (
        open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=False),
        pytest.raises(DataError, match="another process is writing"),
        open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=True),
    ):
        pass


def test_a_full_disk_is_told_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=False) as file:
        file.append([(ROWS[0], ("a", "stop"))])
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(DiskFullError, match=r"after 1 row(.|\n)*the same command goes on"):
            file.append([(ROWS[1], ("b", "stop"))])


def test_a_disk_that_fills_up_in_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    with open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=False) as file:
        file.append([(ROWS[0], ("a", "stop"))])
        file.file = NearlyFull(file.file)  # type: ignore[assignment]
        with pytest.raises(DiskFullError, match="after 1 row"):
            file.append([(ROWS[1], ("b", "stop"))])
    assert (tmp_path / "o").read_bytes() == written(tmp_path / "one", 1).replace("answer 0 ü".encode(), b"a")
    with open_answer_file(tmp_path / "o", ROWS, ADDED, "model", overwrite=False) as file:
        assert file.rows == 1


def test_what_json_does_not_know_is_its_text(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "when": date(2026, 1, 2), "half": "\ud800", "none": float("nan")}]
    for _ in range(2):
        with open_answer_file(tmp_path / "o", rows, ADDED, "model", overwrite=False) as file:
            if not file.rows:
                file.append([(rows[0], ("b", "length"))])
    told = json.loads((tmp_path / "o").read_text())
    assert (told["when"], told["half"], told["completion"]) == ("2026-01-02", "\ud800", "b")
