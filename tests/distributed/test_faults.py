"""A rank that is killed, stopped or fails: all end in time with one message, and the run goes on as if nothing was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.distributed.conftest import lay_out
from tests.distributed.starting import TWO, Act, done, trained

TIMEOUT, ROLL, SPARE = 4, 2, 15
"""Seconds: how long ranks wait for one another, for their word, and what a machine that is busy adds."""
STEP, EVALUATION = "loraft.training.loop:take_step", "loraft.training.loop:evaluate_loss"
SAVE = "loraft.training.checkpoint:seal"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, object]]]:
    """What the run ends with that nothing happens to."""
    place = lay_out(tmp_path_factory.mktemp("unbroken"))
    ended = done(place, "train", "c.yaml", *TWO)
    assert ended.returncode == 0, ended.stderr
    return trained(place / "run")


def at_call(where: str, rank: int, number: int, fault: Callable[[], object]) -> Act:
    """Have something happen to a rank when it calls a function for the so manyth time."""

    def prepare(this: int) -> None:
        if this != rank:
            return
        module, _, name = where.partition(":")
        real, calls = getattr(import_module(module), name), [0]

        def faulty(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == number:
                fault()
            return real(*args, **kwargs)

        setattr(import_module(module), name, faulty)

    return prepare


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def goes_on(place: Path, unbroken: object) -> None:
    """Resume the run, which ends as if nothing had happened."""
    again = done(place, "train", "c.yaml", *TWO, "--resume")
    assert again.returncode == 0, again.stderr
    assert trained(place / "run") == unbroken
    assert not list((place / "run").rglob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "rank", "number", "said", "code"),
    [
        (STEP, 1, signal.SIGKILL, "rank 1 of 2 was ended by SIGKILL", 137),
        (SAVE, 0, signal.SIGKILL, "rank 0 of 2 was ended by SIGKILL", 137),
        (EVALUATION, 1, signal.SIGSTOP, "rank 1 of 2 has not answered for 4 seconds", 3),
        (SAVE, 0, signal.SIGSTOP, "rank 0 of 2 has not answered for 4 seconds", 3),
    ],
)
def test_a_lost_rank_is_named_and_the_run_goes_on(
    place: Path, unbroken: object, where: str, rank: int, number: int, said: str, code: int
) -> None:
    """Killed or stopped at the third step, evaluation or checkpoint."""
    began = time.monotonic()
    ended = done(place, "train", "c.yaml", *TWO, before=at_call(where, rank, 3, signalled(number)))
    assert time.monotonic() - began < TIMEOUT + ROLL + SPARE
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert said in ended.stderr
    assert "gloo" not in ended.stderr
    assert "Traceback" not in ended.stderr
    goes_on(place, unbroken)
