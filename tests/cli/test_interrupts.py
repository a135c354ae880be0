"""Signals that a run gets, in a process of its own: what is saved, how it ends, and that a second ends it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from transformers import AutoModelForCausalLM

from loraft.cli.runner import SignalReceived, interruptible, pass_on_unless_ctrl_c
from loraft.training import loop
from tests.cli.running import loraft, started
from tests.cli.test_end_to_end import place

__all__ = ["place"]  # a fixture

ENDLESS = ("train", "c.yaml", "training.max_steps=100000", "training.save_steps=100000", "data.eval=null")
SECONDS = 60


class Run:
    """A run that goes on in a process of its own."""

    def __init__(self, place: Path, pid: int) -> None:
        self.folder = place / "run"
        self.pid = pid
        self.log = place / ".stderr"
        self.status: int | None = None

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline
            assert not self.ended(), self.log.read_text()
            time.sleep(0.01)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def end(self) -> int:
        """How it ended: an exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + SECONDS
        while not self.ended():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("step-*"))


@contextmanager
def running(place: Path, *words: str) -> Iterator[Run]:
    run = Run(place, started(*words, cwd=place))
    try:
        yield run
    finally:
        if not run.ended():
            run.send(signal.SIGKILL)
            run.end()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_what_stops_a_run_saves_it(place: Path, number: int, code: int) -> None:
    with running(place, *ENDLESS) as run:
        run.wait_for((run.folder / "metrics.jsonl").exists)
        run.send(number)
        assert run.end() == code
    told = run.log.read_text()
    assert "everything is saved" in told
    assert "Traceback" not in told
    (saved,) = run.checkpoints()
    steps = int(saved.removeprefix("step-")) + 1
    more = loraft("train", "run/config.yaml", f"training.max_steps={steps}", "--resume-anyway", cwd=place)
    assert more.returncode == 0, more.stderr


@pytest.mark.slow
def test_sigusr1_saves_and_the_run_goes_on(place: Path) -> None:
    with running(place, *ENDLESS) as run:
        metrics = run.folder / "metrics.jsonl"
        run.wait_for(metrics.exists)
        assert run.checkpoints() == []
        run.send(signal.SIGUSR1)
        run.wait_for(run.checkpoints)
        size = metrics.stat().st_size
        run.wait_for(lambda: metrics.stat().st_size > size)
        run.send(signal.SIGTERM)
        assert run.end() == 143
    assert len(run.checkpoints()) == 2


@pytest.mark.slow
def test_sigusr1_before_the_first_step_is_granted_after_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loraft.api import runs

    load = runs.plan_run

    def asked(*given: object, **named: object) -> object:
        os.kill(os.getpid(), signal.SIGUSR1)
        return load(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "plan_run", asked)
    with running(place, *ENDLESS) as run:
        run.wait_for(run.checkpoints)
        assert run.checkpoints() == ["step-000001"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_a_run_at_once(place: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> NoReturn:
        (place / "in-a-step").touch()
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(loop, "_step", endless)
    with running(place, *ENDLESS) as run:
        run.wait_for((place / "in-a-step").exists)
        run.send(number)
        time.sleep(0.2)
        assert not run.ended()
        run.send(number)
        assert run.end() == -number


@pytest.mark.slow
def test_a_run_begun_by_nohup_outlives_its_terminal(place: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(place, *ENDLESS) as run:
            metrics = run.folder / "metrics.jsonl"
            run.wait_for(metrics.exists)
            run.send(signal.SIGHUP)
            size = metrics.stat().st_size
            run.wait_for(lambda: metrics.stat().st_size > size + 1000)
            run.send(signal.SIGTERM)
            assert run.end() == 143
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_wins_over_what_a_library_makes_of_it_while_weights_load(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object, **__: object) -> NoReturn:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            raise RuntimeError("a worker went away") from None
        raise AssertionError("the signal comes first")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", torn)
    done = loraft("train", "c.yaml", cwd=place)
    assert done.returncode == 143
    assert "cannot read" not in done.stderr
    assert done.stderr.rstrip().endswith("stopped.")


def test_ctrl_c_may_be_an_answer_and_other_signals_are_not() -> None:
    """In a conversation the first Ctrl-C takes a question back; SIGTERM ends it."""

    def taken(number: int) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as stop:
            pass_on_unless_ctrl_c(stop)

    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as watch:
        for _ in range(2):
            taken(signal.SIGINT)
            assert watch.received is None
        with pytest.raises(SignalReceived):
            taken(signal.SIGTERM)
        assert watch.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one ends the process"
    assert signal.getsignal(signal.SIGTERM) == before
