"""A rank that is killed, stopped or fails: all end in time with one message, and the run goes on as if nothing was."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from loraft.training.train_step import Trainer
from tests.distributed.starting import (
    EVALUATION,
    LOG,
    SAVE,
    STEP,
    TWO,
    Launched,
    at_call,
    done,
    goes_on,
    launching,
    torchrun,
    trained,
)

TIMEOUT, ROLL, SPARE = 4, 2, 15
"""Seconds: how long ranks wait for one another, for their word, and what a machine that is busy adds."""


def signalled(number: int) -> Callable[..., None]:
    return lambda *_: os.kill(os.getpid(), number)


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def not_a_number(run: Trainer, *_: object) -> None:
    next(iter(run.adapted.trainable.values())).data.fill_(float("nan"))


def rank_of(number: int) -> Callable[[Launched], int]:
    """The process of a rank."""

    def find(launched: Launched) -> int:
        return sorted(each.pid for each in psutil.Process(launched.process.pid).children())[number]

    return find


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


@pytest.mark.slow
def test_a_rank_that_is_killed_before_the_first_step_is_named(place: Path) -> None:
    """It is what a system does that has too little memory for as many models."""
    harm = at_call("loraft.training.trainer:build_model", 0, 1, signalled(signal.SIGKILL))
    ended = done(place, "train", "c.yaml", *TWO, before=harm)
    assert ended.returncode == 137
    assert "rank 0 of 2 was ended by SIGKILL" in ended.stderr
    assert "stopped" not in ended.stderr


@pytest.mark.slow
def test_under_torchrun_a_rank_that_is_stopped_is_named_and_ended(place: Path) -> None:
    """Torchrun itself waits 30 seconds for a process that it has asked to stop."""
    began = time.monotonic()
    harm = at_call(STEP, 0, 2, signalled(signal.SIGSTOP))
    ended = done(place, launch=torchrun("train", "c.yaml"), before=harm)
    assert time.monotonic() - began < TIMEOUT + ROLL + SPARE
    assert ended.stderr.count("error: ") == 1
    assert "rank 0 of 2 has not answered for 4 seconds" in ended.stderr


@pytest.mark.slow
def test_all_are_started_again_when_one_is_lost(place: Path, unbroken: object) -> None:
    """`--max-restarts 1`: the run ends as if nothing had happened, without a word from its user."""
    once = place / "once"

    def kill(*_: object) -> None:
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ended = done(place, "train", "c.yaml", *TWO, "--max-restarts", "1", before=at_call(STEP, 1, 3, kill))
    assert ended.returncode == 0, ended.stderr
    assert trained(place / "run") == unbroken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "rank", "fault", "said"),
    [
        (STEP, 1, not_a_number, ["the loss is nan at step 3", "(rank 1 of 2)"]),
        (STEP, 1, out_of_memory, ["ran out of memory", "(rank 1 of 2)"]),
        (SAVE, 0, full_disk, ["the disk filled up while the checkpoint of step 3 was written"]),
        (LOG, 0, full_disk, ["the disk filled up"]),
    ],
    ids=["nan", "memory", "saving", "logging"],
)
def test_what_one_rank_meets_all_raise_and_one_tells(
    place: Path, where: str, rank: int, fault: Callable[..., object], said: list[str]
) -> None:
    """With the exit code of one process where loraft starts them: torchrun's own is 1."""
    late = at_call("loraft.cli.launch:_left_behind", 0, 1, lambda *_: time.sleep(0.3))

    def harm(this: int) -> None:
        """The error of rank 1 is the first that whoever started them reads."""
        at_call(where, rank, 3, fault)(this)
        late(this)

    words = ("train", "c.yaml", "--overwrite", "--json")
    ours = done(place, *words, *TWO, before=harm)
    theirs = done(place, launch=torchrun(*words), before=harm)
    assert (ours.returncode, theirs.returncode) == (3, 1)
    for ended in (ours, theirs):
        document = json.loads(ended.stdout)
        assert document["exit_code"] == 3
        assert len(document["problems"]) == 1
        assert all(words in document["problems"][0]["message"] for words in said), document
        assert ended.stderr.count("error: ") == 1
        assert "Traceback" not in ended.stderr
    assert not list((place / "run").rglob("*partial*"))


@pytest.mark.slow
def test_a_signal_to_one_rank_or_to_all_saves_once_and_the_run_goes_on(place: Path, unbroken: object) -> None:
    """Ctrl-C at a terminal reaches the launcher alone, whose ranks lead sessions of their own."""
    slowly = at_call(STEP, 1, 0, lambda *_: None, each=lambda: time.sleep(0.3))
    for words, to, number, code in (
        ([], rank_of(1), signal.SIGTERM, 143),
        (["--resume"], lambda launched: -launched.process.pid, signal.SIGINT, 130),
    ):
        with launching(place, "train", "c.yaml", *TWO, *words, before=slowly) as launched:
            launched.wait_for(lambda: "tokens/s" in launched.err.read_text())
            if not words:
                launched.process.send_signal(signal.SIGUSR1)
            os.kill(to(launched), number)
            ended = launched.end()
        assert ended.returncode == code, ended.stderr
        assert ended.stderr.count("stopped at step") == 1
        assert "error: " not in ended.stderr
    goes_on(place, unbroken)


@pytest.mark.slow
def test_a_signal_to_one_rank_before_the_first_step_ends_all(place: Path) -> None:
    def stopping(launched: Launched) -> None:
        launched.wait_for(lambda: "rank" in launched.err.read_text())
        os.kill(rank_of(1)(launched), signal.SIGTERM)

    slowly = at_call("loraft.training.trainer:build_model", 1, 1, lambda *_: time.sleep(5))
    for launch in (None, torchrun("train", "c.yaml")):
        with launching(place, "train", "c.yaml", *TWO, before=slowly, launch=launch) as launched:
            stopping(launched)
            ended = launched.end()
        assert ended.returncode == (143 if launch is None else 1), ended.stderr
        assert ended.stderr.count("stopped.") == 1
        assert "error: " not in ended.stderr


@pytest.mark.slow
def test_sigusr1_to_the_launcher_saves_once_and_stops_nothing(place: Path) -> None:
    slowly = at_call(STEP, 1, 0, lambda *_: None, each=lambda: time.sleep(0.3))
    with launching(
        place, "train", "c.yaml", "training.save_steps=4", "data.eval=null", *TWO, before=slowly
    ) as launched:
        launched.wait_for(launched.run.joinpath("metrics.jsonl").exists)
        launched.process.send_signal(signal.SIGUSR1)
        ended = launched.end()
    assert ended.returncode == 0
    assert ended.stderr.count("saved run/checkpoints") == 2
    assert not list((place / "run").rglob("*partial*"))
