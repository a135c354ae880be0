"""How a command ends: its exit code, and what is said when it did not go well.

0     done
2     refused: the input is wrong or foreseen not to work
3     failed while running
130   stopped by SIGINT      143  stopped by SIGTERM      129  stopped by SIGHUP
141   whoever read standard output went away
1     a bug in loraft, with its traceback
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import ParamSpec

import typer

from loraft.cli.wording import in_words_of
from loraft.errors import STOPPING, Interrupted, LoraftError, Problem, RunError
from loraft.io.called_files import called
from loraft.io.secrets import redacted_problem


class SignalReceived(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does."""

    def __init__(self, watch: SignalWatch, number: int) -> None:
        super().__init__()
        self.watch, self.signal_number = watch, number


class SignalWatch:
    """While it is armed, a signal is noted in `received` and raised; the next one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def arm(self) -> None:
        """Note and raise the next signal; one that this process was begun without, as by nohup, stays ignored."""
        self.received = None
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in STOPPING:
            if signal.getsignal(each) == self._interrupt:
                signal.signal(each, signal.SIG_DFL)
        raise SignalReceived(self, number)


@contextmanager
def interruptible() -> Iterator[SignalWatch]:
    """A watch that is armed; not in threads other than the main one, which no signal reaches."""
    watch = SignalWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = {number: handler for number in STOPPING if (handler := signal.getsignal(number)) is not None}
    watch.arm()
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_on_unless_ctrl_c(stop: KeyboardInterrupt) -> None:
    """Take Ctrl-C for an answer, after which the command goes on; SIGTERM and SIGHUP end it all the same.

    Raises:
        KeyboardInterrupt: `stop` itself, where it is not Ctrl-C.
    """
    if isinstance(stop, SignalReceived):
        if stop.signal_number != signal.SIGINT:
            raise stop
        stop.watch.arm()


Arguments = ParamSpec("Arguments")

BUG = "This is a bug in loraft: nothing you typed should end in a traceback. Please report it with the lines above."

OF_THE_MACHINE = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE,
    errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE,
)  # fmt: skip
"""What a system refuses for reasons of its own: no bug of ours, wherever it comes up."""


def handle_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Wraps a command so that whatever it raises becomes a few lines, a JSON document `as_json`, and an exit code."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with interruptible() as signals:
            try:
                command(*args, **kwargs)
                sys.stdout.flush()
            except (typer.Exit, typer.BadParameter):
                raise
            except (Exception, KeyboardInterrupt) as error:
                raise typer.Exit(_ended(error, kwargs, signals.received)) from None

    return run


def _ended(error: BaseException, parameters: Mapping[str, object], received: int | None) -> int:
    """Tell how a command ended, and give its exit code; a signal wins over what a library made of it."""
    as_json = bool(parameters.get("as_json"))
    if isinstance(error, LoraftError) and (received is None or isinstance(error, Interrupted)):
        return end_with(error, in_words_of(parameters, error), as_json=as_json)
    if received is not None or isinstance(error, KeyboardInterrupt | typer.Abort):  # that is Ctrl-C at a question
        with suppress(OSError):  # the terminal may have gone away, which is what SIGHUP tells
            print("stopped.", file=sys.stderr, flush=True)
        return 128 + (getattr(error, "signal_number", signal.SIGINT) if received is None else received)
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        failed = RunError(error.strerror or str(error), where=error.filename and os.fsdecode(error.filename))
        return end_with(failed, failed.problems, as_json=as_json)
    traceback.print_exception(error)
    print(BUG, file=sys.stderr)
    return 1


def end_with(error: LoraftError, problems: Sequence[Problem], *, as_json: bool = False) -> int:
    """Tells what is wrong, and returns the exit code that says of what kind it is."""
    from loraft.cli.console import print_json, print_message, print_problems

    if isinstance(error, Interrupted):
        exit_code = error.stopped_exit_code
        for said in filter(None, (problems[0].message, problems[0].remedy)):
            print_message(said)
    else:
        told = map(redacted_problem, problems)
        problems = [replace(problem, where=problem.where and called(problem.where)) for problem in told]
        exit_code = error.exit_code
        print_problems(problems)
    if as_json:
        print_json({"problems": [problem.as_dict() for problem in problems], "exit_code": exit_code})
    return exit_code
