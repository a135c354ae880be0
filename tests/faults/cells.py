"""Runs that differ in all that a resumed run has to put back, what is done to them, and whether they end as one did."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraft.training import loop
from tests.cli.running import loraft, started
from tests.faults.fault_points import signalled_at
from tests.tiny import save_tiny
from tests.training.building import MODEL_OF, ROWS_OF, write_rows

METHODS, TASKS = ("lora", "qlora", "full"), ("causal_lm", "seq2seq_lm", "seq_cls", "preference", "seq2seq_preference")
OF_THE_CLOCK = frozenset({"tokens_per_second", "peak_bytes"})
CHANGES_OF_A_SAVE = 90
"""About as many changes of files as a save of these runs makes."""
STOPPED = "stopped at step "
RESUME = ("train", "c.yaml", "--resume")


@dataclass(frozen=True)
class Cell:
    """One kind of run."""

    method: str
    task: str
    accumulation: int
    streaming: bool

    @property
    def name(self) -> str:
        """As a test is called."""
        return f"{self.task}-{self.method}-{self.accumulation}{'-streaming' if self.streaming else ''}"

    @property
    def config(self) -> str:
        """Seven steps over an epoch's end, with dropout, evaluations between saves, and checkpoints that go again."""
        loss = "orpo" if self.method == "full" else "dpo"
        optim = {"lora": "adamw", "qlora": "adamw_8bit", "full": "adafactor"}[self.method]
        return (
            f"task: {self.task}\nmethod: {self.method}\n"
            "model: {name_or_path: model, dtype: float32}\nlora: {r: 4, dropout: 0.1}\n"
            f"data: {{train: rows.jsonl, eval: eval.jsonl, max_length: 256, streaming: {str(self.streaming).lower()}, "
            "labels: [late, order, text], shuffle_buffer: 5}\n"
            f"training: {{output_dir: run, max_steps: 7, logging_steps: 1, save_steps: 2, eval_steps: 3, "
            "save_total_limit: 2, per_device_train_batch_size: 2, per_device_eval_batch_size: 1, "
            f"gradient_accumulation_steps: {self.accumulation}, learning_rate: 0.01, optim: {optim}}}\n"
            f"preference: {{loss: {loss}}}\n"
        )

    def write(self, folder: Path) -> None:
        """Put the config and all that it names into a folder."""
        save_tiny(folder / "model", MODEL_OF[self.task])
        rows = ROWS_OF[self.task](16)
        write_rows(folder / "rows.jsonl", rows[:12])
        write_rows(folder / "eval.jsonl", rows[12:])
        (folder / "c.yaml").write_text(self.config)


CELLS = [
    Cell(method, task, accumulation, streaming)
    for task in TASKS
    for method in METHODS
    for accumulation in (1, 3)
    for streaming in (False, True)
]
IN_CI = [*(CELLS[4 * pair + pair % 4] for pair in range(13)), CELLS[3]]
"""Every method with every task but the last, and with each way that a step and its rows can be."""


def is_saved(path: Path) -> bool:
    """Whether a file in a run's folder is part of what is saved, and none that is only added to."""
    return path.parts[:1] != () and path.parts[0].lstrip(".").partition(".")[0] in ("checkpoints", "adapter", "model")


class Place:
    """A folder in which a run of a cell was trained to its end, and in which it is trained anew, with interruptions.

    Attributes:
        run: The folder of the run that is interrupted.
        whole: That of the run that never was.
        begun_after: How many steps began after the newest signal.
    """

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.folder, self.run, self.whole = folder, folder / "run", folder / "whole"
        self.draw = random.Random(cell.name)
        self.begun_after = 0
        cell.write(folder)
        done = loraft("train", "c.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        self.run.rename(self.whole)

    def said(self) -> str:
        """What the process that ended last said on standard error."""
        return (self.folder / ".stderr").read_text()

    def started(self, first: Callable[[], object] = lambda: None) -> int:
        """A process of its own that goes on with the run, or begins it; `first` is called in it alone."""
        return started(*RESUME, cwd=self.folder, first=first)

    def ended_by(self, aim: Aim, number: int = signal.SIGKILL, code: int = -signal.SIGKILL) -> None:
        """Go on with the run until a signal ends it; where it ended before that, begin it anew and aim again."""
        for _ in range(5):
            ended = aim(self, number)
            if ended == code and (number == signal.SIGKILL or STOPPED in self.said()):
                return
            assert ended in (0, code, -number), self.said()
            self.is_as_the_whole()
            shutil.rmtree(self.run)
        raise AssertionError("five runs in turn ended before the signal came")

    def ends_as_the_whole(self) -> None:
        """Go on to the end by one command, and compare all that is in the folder, byte by byte."""
        done = loraft(*RESUME, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        self.is_as_the_whole()

    def is_as_the_whole(self) -> None:
        """Compare all that is in the folder of a run that has ended, hidden leftovers among it, byte by byte."""
        ours, theirs = contents(self.run), contents(self.whole)
        assert sorted(ours) == sorted(theirs)
        assert [name for name in theirs if ours[name] != theirs[name]] == []


Aim = Callable[[Place, int], int]
"""Goes on with a run in a process of its own, sends it a signal at some moment, and gives how it ended."""


def exit_code(pid: int) -> int:
    """How a process ended: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(run: Path) -> dict[str, object]:
    """The files of a run by their names, without what tells of the clock, of memory, and of how it was started."""
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: _content(path) for name, path in files.items() if path.name not in (".lock", "report.html")}


def _content(path: Path) -> object:
    if path.name == "manifest.json":  # its sums are those of `state.json` too, or it tells of the command
        return sorted(json.loads(path.read_text()))
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{name: line[name] for name in line if name not in OF_THE_CLOCK} for line in lines]
    if path.name == "state.json":
        told = json.loads(path.read_text())
        del told["state"]["files"]  # the bytes of the metrics, which tell of the clock
        return told
    return path.read_bytes()


def while_training(place: Place, number: int) -> int:
    """Signal it from outside at a random moment of the first steps that it takes, of which one at most begins after."""
    seen, told = os.pipe()
    step = loop._step

    def slow(*given: Any) -> None:
        os.write(told, b".")
        time.sleep(0.04)
        step(*given)

    def first() -> None:
        os.close(seen)
        loop._step = slow

    pid = place.started(first)
    os.close(told)
    with open(seen, "rb", buffering=0) as steps:
        if steps.read(1):
            time.sleep(place.draw.random() * 0.12)
            os.kill(pid, number)
            os.set_blocking(seen, False)
            steps.read()  # those that began before
            os.set_blocking(seen, True)
            place.begun_after = len(steps.readall())
        return exit_code(pid)


def inside_a_save(place: Place, number: int) -> int:
    """Signal it before one of the changes of files that its saves make, drawn from those of the first two."""
    count = 1 + int(place.draw.random() * 2 * CHANGES_OF_A_SAVE)
    return exit_code(place.started(signalled_at(place.run, count, is_saved, number)))


def in_an_evaluation(place: Place, number: int) -> int:
    """Signal it before one of the rows of the first evaluations that it makes."""
    return before_evaluated_row(place, number, 1 + int(place.draw.random() * 8))


def before_evaluated_row(place: Place, number: int, left: int) -> int:
    """Signal it before the row of that count, from 1, of all the evaluations that it makes."""
    evaluate = loop.evaluate_loss

    def counted(*given: Any, stop: Callable[[], bool]) -> Any:
        def count() -> bool:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)
            return stop()

        return evaluate(*given, stop=count)

    def first() -> None:
        loop.evaluate_loss = counted

    return exit_code(place.started(first))


def twice_in_a_step(place: Place, number: int) -> int:
    """Signal it twice while it takes a step that would last a second."""
    in_a_step = place.folder / "in-a-step"
    in_a_step.unlink(missing_ok=True)
    step = loop._step

    def slow(*given: Any) -> None:
        in_a_step.touch()
        time.sleep(1)
        step(*given)

    def first() -> None:
        loop._step = slow

    pid = place.started(first)
    while not in_a_step.exists():
        time.sleep(0.01)
    os.kill(pid, number)
    time.sleep(0.1)
    began = time.monotonic()
    os.kill(pid, number)
    code = exit_code(pid)
    assert time.monotonic() - began < 0.6, "the step went on"
    return code
