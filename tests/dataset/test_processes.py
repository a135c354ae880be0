"""Several processes give the same tokens in the same order, and none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loraft.config.schema import RunConfig
from loraft.dataset import tokenize_rows
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.tokenize_rows import PAYS_FROM, processes_for
from loraft.errors import DataError
from tests.tiny import tiny_tokenizer


def prepared(path: Path, **data: Any) -> PreparedData:
    values = {"model": {"name_or_path": "x"}, "data": {"train": str(path), "eval": None, **data}}
    return prepare(RunConfig.model_validate(values), tiny_tokenizer())


def rows(path: Path, count: int, *, bad: int | None = None) -> Path:
    """Conversations of two turns; `bad` is the number of one that no template of ours renders."""

    def turns(number: int) -> list[dict[str, str]]:
        role = "system" if number == bad else "user"
        return [{"role": role, "content": f"q{number}"}, {"role": "assistant", "content": "late " * (number % 5 + 1)}]

    path.write_text("".join(json.dumps({"messages": turns(number)}) + "\n" for number in range(count)))
    return path


def test_auto_is_one_for_few_rows() -> None:
    assert processes_for("auto", PAYS_FROM - 1) == 1
    assert processes_for("auto", PAYS_FROM) == len(os.sched_getaffinity(0))
    assert processes_for(3, 100_000) == 3
    assert processes_for(8, 100) == 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_tokens_and_order_are_the_same_whatever_the_number(tmp_path: Path, count: int) -> None:
    path = rows(tmp_path / "a.jsonl", 1700)
    assert prepared(path, num_proc=count).train == prepared(path, num_proc=1).train


@pytest.mark.slow
def test_errors_of_rows_keep_their_line(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + (tiny_tokenizer().chat_template)
    )
    path = rows(tmp_path / "a.jsonl", 1200, bad=1100)
    for count in (1, 2):
        with pytest.raises(DataError, match=r"a\.jsonl:1101 data\.chat_template: .*no system"):
            prepared(path, num_proc=count, chat_template=str(template))


@pytest.mark.slow
def test_a_process_that_dies_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows(tmp_path / "a.jsonl", 1200)
    monkeypatch.setattr(tokenize_rows, "SERVE", "import sys; sys.stdin.buffer.read(100)")
    assert prepared(path, num_proc=2).train == prepared(path, num_proc=1).train


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_process(tmp_path: Path, number: int) -> None:
    """A script without a guard around its main part, stopped in the middle."""
    path = rows(tmp_path / "a.jsonl", 20_000)
    script = tmp_path / "script.py"
    script.write_text(
        f"from pathlib import Path\nfrom tests.dataset.test_processes import prepared\n"
        f"print('go', flush=True)\nprepared(Path({str(path)!r}), num_proc=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert started.stdout is not None
    started.stdout.readline()
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline and started.poll() is None:
        children = children_of(started.pid)
        time.sleep(0.05)
    assert len(children) == 2
    started.send_signal(number)
    started.communicate(timeout=60)
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
