"""Ranks that are loraft itself, started by the launchers that people use, without the seconds that an import takes.

A launcher runs in a fork of this process, and what it would start as `python -m loraft` is a fork of the launcher. All
else is as it would be: sessions, environment, signals, exit codes. A test may do something in a rank before it begins.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from loraft.__main__ import main
from tests.cli.running import Done

SECONDS = 90
TWO = ("--num-processes", "2")
MEASURED = {"seconds", "tokens_per_second", "peak_bytes", "step_seconds", "time"}
Launch = Callable[[], object]
STEP, EVALUATION = "loraft.training.loop:take_step", "loraft.training.loop:evaluate_loss"
SAVE, LOG = "loraft.training.checkpoint:seal", "loraft.training.run_dir:RunFolder.append"
Act = Callable[[int], object]
"""What a test does in a rank, whose number it is given, before that one begins."""


class Fork:
    """A fork of this process that does something, with what `subprocess.Popen` has for its child."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _do(act)

    def poll(self) -> int | None:
        """How it ended; None while it goes on."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = SECONDS) -> int:
        """How it ended."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _do(act: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        act()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def be_loraft(words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Turn this process, a fork, into loraft."""
    os.environ.update(environment or {})
    sys.argv = ["loraft", *words]
    main()


def _rank_starter(before: Act) -> Callable[..., Fork]:
    """What starts a rank in place of a new Python."""

    def start(_: object, command: Sequence[str], environment: Mapping[str, str]) -> Fork:
        def act() -> None:
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # the launcher's own
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            before(int(environment["RANK"]))
            be_loraft(command[command.index("loraft") + 1 :])

        return Fork(act)

    return start


class Launched:
    """A launcher that goes on in a process of its own, which leads a group."""

    def __init__(self, cwd: Path, launch: Launch, before: Act) -> None:
        self.run, self.out, self.err = cwd / "run", cwd / ".stdout", cwd / ".stderr"
        self.out.write_text("")
        self.err.write_text("")

        def act() -> None:
            os.setsid()
            os.chdir(cwd)
            for number, file in ((1, self.out), (2, self.err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            subprocess_handler.SubprocessHandler._popen = _rank_starter(before)  # type: ignore[method-assign]
            launch()

        self.process = Fork(act)

    def wait_for(self, what: Callable[[], object]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < deadline, self.err.read_text()
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.01)

    def end(self) -> Done:
        """How it ended."""
        return Done(self.process.wait(), self.out.read_text(), self.err.read_text())


@contextmanager
def launching(cwd: Path, *words: str, before: Act = lambda _: None, launch: Launch | None = None) -> Iterator[Launched]:
    """A launcher meanwhile: loraft itself, or another; nothing of its group is left behind."""
    launched = Launched(cwd, launch or (lambda: be_loraft(words)), before)
    try:
        yield launched
    finally:
        for child in _descendants(launched.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        launched.process.send_signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            launched.process.wait(10)


def _descendants(pid: int) -> list[int]:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def torchrun(*words: str) -> Launch:
    """Start two ranks by torchrun."""

    def launch() -> None:
        from torch.distributed.run import main

        main(["--standalone", "--nproc-per-node", "2", "-m", "loraft", *words])

    return launch


def done(place: Path, *words: str, before: Act = lambda _: None, launch: Launch | None = None) -> Done:
    """How a launcher ended."""
    with launching(place, *words, before=before, launch=launch) as launched:
        return launched.end()


def trained(run: Path) -> tuple[bytes, list[dict[str, object]]]:
    """The weights that a run ended with, and its metrics but for what was measured by a clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [{key: of for key, of in json.loads(line).items() if key not in MEASURED} for line in lines]
    return (run / "adapter" / "adapter_model.safetensors").read_bytes(), metrics


def at_call(where: str, rank: int, number: int, fault: Callable[..., object], each: Callable[[], object] = int) -> Act:
    """Have something happen to a rank when it calls a function for the so manyth time, with what it was called."""

    def prepare(this: int) -> None:
        if this != rank:
            return
        module, _, path = where.partition(":")
        *owners, name = path.split(".")
        owner = reduce(getattr, owners, import_module(module))
        real, calls = getattr(owner, name), [0]

        def faulty(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            each()
            if calls[0] == number:
                fault(*args)
            return real(*args, **kwargs)

        setattr(owner, name, faulty)

    return prepare


def goes_on(place: Path, unbroken: object) -> None:
    """Resume the run, which ends as if nothing had happened."""
    again = done(place, "train", "c.yaml", *TWO, "--resume")
    assert again.returncode == 0, again.stderr
    assert trained(place / "run") == unbroken
    assert not list((place / "run").rglob("*partial*"))
