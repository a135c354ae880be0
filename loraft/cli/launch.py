"""Several processes that train one run: started here, and how each of them speaks.

A process that is started here leaves its error in a file, and the one that started it tells of the first that happened.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import psutil
import typer

from loraft.cli.console import forget
from loraft.cli.options import option, refuse
from loraft.distributed.first_machine import meet_first_machine
from loraft.distributed.rank_environment import RankEnvironment
from loraft.errors import STOPPING, Interrupted, LoraftError, LostRankError
from loraft.io.resources import usable_cores
from loraft.io.signals import signals_to

ERRORS = "LORAFT_RANK_ERRORS"
"""The folder where the processes that were started here leave their errors and their numbers."""
PORT = 29500
"""That of machine 0 where none is named, as with torchrun and accelerate launch."""
LEAD = 3
"""Seconds that the first one has to tell what all know, before the others end."""
GRACE = 600
"""Seconds in which a process that is asked to stop may save."""


@dataclass(frozen=True)
class RanksOptions:
    """The processes that train together."""

    num_processes: int = option("N", "Train with N processes on this machine: one a GPU.", default=1, min=1)
    num_machines: int = option("M", "Train on M machines, on each of which this is started.", default=1, min=1)
    machine_rank: int = option("R", "The number of this machine, from 0.", default=0, min=0)
    main_process_ip: str | None = option("HOST", "The address of machine 0, where there are several.")
    main_process_port: int = option("PORT", "A free port of machine 0.", default=PORT, min=1, max=65535)
    max_restarts: int = option(
        "N", "When a process is lost, start all again and go on from the newest checkpoint, N times at most.",
        default=0, min=0,
    )  # fmt: skip

    @property
    def starts_others(self) -> bool:
        """Whether this process is to start those that train, and is none of them."""
        return self._asked and ERRORS not in os.environ

    @property
    def _asked(self) -> bool:
        return self.num_processes > 1 or self.num_machines > 1 or self.max_restarts > 0

    def check(self) -> None:
        """Refuse what does not go together."""
        started = RankEnvironment.read().world if ERRORS not in os.environ else 1
        refuse(
            (
                self._asked and started > 1,
                f"another launcher has started {started} processes already: leave it out, or --num-processes and such.",
            ),
            (self.num_machines > 1 and not self.main_process_ip, "--num-machines needs --main-process-ip."),
            (self.num_machines == 1 and self.main_process_ip is not None, "--main-process-ip needs --num-machines."),
            (self.num_machines == 1 and self.main_process_port != PORT, "--main-process-port needs --num-machines."),
            (self.machine_rank >= self.num_machines, "--machine-rank is from 0 and below --num-machines."),
            (self.num_machines > 1 and self.max_restarts, "--max-restarts is for one machine: use --resume."),
        )


def start_ranks(asked: RanksOptions, arguments: Sequence[str]) -> None:
    """Start the processes that train, and wait until all have ended.

    Raises:
        LoraftError: What the first of them that failed had to say.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    several = asked.num_machines > 1
    endpoint = f"{asked.main_process_ip}:{asked.main_process_port}" if several else "localhost:0"
    if several and asked.main_process_ip is not None:
        meet_first_machine(asked.main_process_ip, asked.main_process_port, first=asked.machine_rank == 0)
    config = LaunchConfig(
        min_nodes=asked.num_machines,
        max_nodes=asked.num_machines,
        nproc_per_node=asked.num_processes,
        run_id="loraft",
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"rank": asked.machine_rank} if several else {},
        local_addr=None if several else "localhost",
        max_restarts=asked.max_restarts,
        shutdown_timeout=GRACE,
    )
    with TemporaryDirectory(prefix="loraft-ranks-") as folder, _save_requests_passed_on(Path(folder)):
        os.environ[ERRORS] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // asked.num_processes)))
        ended: dict[int, int] = {}
        try:
            elastic_launch(config, sys.executable)("-m", "loraft", *arguments)
        except ChildFailedError as error:
            silent = {int(file.stem) for file in Path(folder).glob("*.silent")}
            ended = {rank: each.exitcode for rank, each in error.failures.items() if rank not in silent}
        except SignalException as error:
            if not _left(Path(folder)):
                raise Interrupted("stopped.", signal_number=int(error.sigval)) from None
        require_success(_left(Path(folder)), ended, asked.num_processes * asked.num_machines)


def require_success(left: Mapping[int, LoraftError], ended: Mapping[int, int], world: int) -> None:
    """Raise what is to be told of processes that have left errors, or ended with other exit codes than 0, by rank.

    That one was lost is told by others too, and is the consequence, as it is that these were asked to stop.
    """
    for error in left.values():
        if not isinstance(error, LostRankError | Interrupted):
            raise error
    for rank, code in ended.items():
        if code < 0 and -code != signal.SIGTERM:
            killed = signal.Signals(-code).name
            message = f"rank {rank} of {world} was ended by {killed}"
            why = "; a system does so where its memory runs out" if killed == "SIGKILL" else ""
            raise LostRankError(message + why, exit_code=128 - code, remedy="go on with `resume`")
    for error in left.values():
        raise error
    if ended:  # a bug, which the process has told itself
        raise typer.Exit(next(iter(ended.values())) % 256)


def _left(folder: Path) -> dict[int, LoraftError]:
    """The errors that processes left, by rank; the first that was written comes first."""
    files = sorted(folder.glob("*.error"), key=lambda file: file.stat().st_mtime_ns)
    return {int(file.stem): LoraftError.from_json(file.read_text(encoding="utf-8")) for file in files}


@contextmanager
def _save_requests_passed_on(folder: Path) -> Iterator[None]:
    """Pass SIGUSR1 on to the processes that train, which write their numbers into the folder."""

    def pass_on(number: int, _: FrameType | None) -> None:
        for file in folder.glob("*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), number)

    with signals_to(pass_on, signal.SIGUSR1):
        yield


@contextmanager
def as_rank() -> Iterator[RankEnvironment]:
    """Be one of several that train together, where this process is: only rank 0 speaks.

    What all ranks raise together is told once: by rank 0, or by the process that started them, to which that is an end
    and no loss, after which nothing is started again. What was met before they found together, in the config say, is
    told by the first of each machine.
    """
    place, folder = RankEnvironment.read(), os.environ.get(ERRORS)
    if folder is not None:
        file = Path(folder) / f"{place.rank}.error"
        file.unlink(missing_ok=True)
        file.with_suffix(".pid").write_text(str(os.getpid()))
    speak = _mute() if place.rank > 0 else lambda: None
    try:
        yield place
    except (Exception, KeyboardInterrupt) as error:
        if folder is None or not isinstance(error, LoraftError | KeyboardInterrupt):
            _tell_once(error, place, speak)
            raise
        raise typer.Exit(_left_behind(error, file, place)) from None


def _left_behind(error: LoraftError | KeyboardInterrupt, file: Path, place: RankEnvironment) -> int:
    """Write the error for the process that started this one, and give the exit code; 0 where all end by the same."""
    written = file.with_suffix(".partial")
    told = Interrupted.by(error) if isinstance(error, KeyboardInterrupt) else error
    written.write_text(told.as_json(), encoding="utf-8")
    written.rename(file)
    if isinstance(error, LostRankError):
        _end_others(file.parent)
        return error.exit_code
    return 0 if place.world == 1 or getattr(error, "told_by_main", False) else 3


def _tell_once(error: BaseException, place: RankEnvironment, speak: Callable[[], object]) -> None:
    """Speak, where nobody else tells the same; else let the first one tell it.

    As soon as one has ended, what started them asks the others to stop: for one that still speaks this is late.
    """
    if place.world == 1:
        return
    told_by_main = getattr(error, "told_by_main", False)
    tells = place.rank == 0 if told_by_main else isinstance(error, LostRankError) or place.local_rank == 0
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN if tells else signal.SIG_DFL)
    if tells:
        speak()
    for process in error.silent if isinstance(error, LostRankError) else ():
        with suppress(ProcessLookupError):  # one that is stopped hears no other signal: torchrun would wait 30 s for it
            os.kill(process, signal.SIGKILL)
    if told_by_main and not tells:
        time.sleep(LEAD)


def _end_others(folder: Path) -> None:
    """End the other processes of this machine that are still there: one does not answer, and none can go on."""
    for file in folder.glob("*.pid"):
        number = int(file.read_text())
        if number == os.getpid() or file.with_suffix(".error").exists():
            continue
        with suppress(psutil.NoSuchProcess):
            other = psutil.Process(number)
            if other.status() != psutil.STATUS_ZOMBIE:
                file.with_suffix(".silent").touch()
                other.kill()


def _mute() -> Callable[[], object]:
    """Send what this process says nowhere; what is given lets it speak on standard error again."""
    kept = os.dup(2)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        forget(stream)
    return partial(os.dup2, kept, 2)
