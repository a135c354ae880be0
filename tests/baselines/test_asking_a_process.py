"""Processes that answer, die, or are ended: none is left behind."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from loraft.baselines import compare_methods
from loraft.baselines.compare_methods import answers
from loraft.errors import LoraftError, RunError
from loraft.io.asked_process import Answer


def told(monkeypatch: pytest.MonkeyPatch, program: str) -> list[Answer]:
    monkeypatch.setattr(compare_methods, "SERVE", program)
    return list(answers(b"a question"))


def test_answers_come_in_their_order_and_the_question_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; said = sys.stdin.read(); print('{\"said\": \"%s\"}' % said); print('{}')"
    assert told(monkeypatch, program) == [{"said": "a question"}, {}]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was killed, most likely by the system because memory ran"),
        ("import os; os.kill(os.getpid(), 11)", "its process was ended by SIGSEGV"),
        ("raise ValueError('no such thing')", "its process ended with exit code 1: ValueError: no such thing"),
        ("import os; print('{\"kind\"', end='', flush=True); os._exit(5)", "its process ended with exit code 5"),
    ],
    ids=["killed", "crashed", "raised", "in the middle of an answer"],
)
def test_one_that_dies_says_how(monkeypatch: pytest.MonkeyPatch, program: str, why: str) -> None:
    (answer,) = told(monkeypatch, program)
    assert answer["kind"] == "ended"
    error = LoraftError.from_json(answer["error"])
    assert isinstance(error, RunError)
    assert str(error).startswith(why)


def test_closing_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, time; print('{\"pid\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    monkeypatch.setattr(compare_methods, "SERVE", program)
    began = time.monotonic()
    with closing(answers(b"")) as found:
        pid = next(found)["pid"]
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - began < 60


def test_it_finds_this_loraft_and_nothing_in_the_folder_it_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    program = "import json, loraft; print(json.dumps(loraft.__file__))"
    monkeypatch.setattr(compare_methods, "SERVE", program)
    import loraft

    assert [json.dumps(found) for found in answers(b"")] == [json.dumps(loraft.__file__)]
