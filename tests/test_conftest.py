"""What the fixtures of all tests see to: a test that is not quick any more is named."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK

TESTS = f"""
import time

import pytest


def long():
    end = time.process_time() + {QUICK} + 0.1
    while time.process_time() < end:
        pass


def test_long():
    long()


@pytest.mark.slow
def test_asked_for():
    long()


def test_short():
    pass
"""


@pytest.mark.slow
def test_a_test_that_takes_long_and_is_not_slow_is_named_by_its_workers_too(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--slow", "-n", "1", "-p", "tests.conftest", "-c", "/dev/null"]
    done = subprocess.run([*command, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    named = [line.split()[0].rpartition("::")[2] for line in done.stdout.splitlines() if "of the processor" in line]
    assert named == ["test_long"]


class _Ended:
    """What is garbage as soon as it is there, for the collector alone."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.itself = pipe, self

    def __del__(self) -> None:
        os.write(self.pipe, b"ended")


def test_a_fork_does_not_end_what_its_process_has_left_behind() -> None:
    read, write = os.pipe()
    gc.disable()
    try:
        _Ended(write)
        if (child := os.fork()) == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        os.write(write, b"not ")
        gc.collect()
    finally:
        gc.enable()
    assert os.read(read, 100) == b"not ended"
    os.close(read)
    os.close(write)
