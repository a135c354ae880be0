"""What the process that opens pickles is given, and what is told where it ends otherwise than it should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loraft.converting import limited_process
from loraft.converting.limited_process import rewritten
from loraft.errors import ModelError

ASKED = "import json, sys, os; asked = json.load(sys.stdin); out = open(asked['out'], 'w');"


def asking(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What comes of a process that runs `program`, to which torch is not needed."""
    monkeypatch.setattr(limited_process, "SERVE", program)
    return rewritten(folder / "in.bin", folder / "out", {}, lambda _: None)


def test_no_token_of_the_environment_gets_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HOME"):
        monkeypatch.setenv(name, "canary")
    written = asking(f"{ASKED} print(json.dumps({{'written': dict(os.environ)}}))", tmp_path, monkeypatch)
    assert "canary" not in written.values()
    assert set(written) <= {*limited_process.PASSED_ON, "PYTHONPATH", "OMP_NUM_THREADS", "LC_CTYPE"}


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "took more time"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed, most likely"),
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("raise SystemExit('no torch')", "ended with exit code 1: no torch"),
        ("print('{\"written\"', end='')", "ended with exit code 0"),
        ("import sys; print('all is full', file=sys.stderr)", "ended with exit code 0: all is full"),
    ],
)
def test_how_it_ended_is_told(program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=said):
        asking(program, tmp_path, monkeypatch)


def test_progress_and_problems_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(
        limited_process, "SERVE", 'print(\'{"done": 3}\'); print(\'{"problem": {"message": "is no file of tensors"}}\')'
    )
    with pytest.raises(ModelError, match="is no file of tensors"):
        rewritten(tmp_path / "in.bin", tmp_path / "out", {}, told.append)
    assert told == [3]
    assert sys.executable
