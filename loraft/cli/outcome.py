"""How a command ends: its exit code, and what is said when it did not go well.

    0     done
    2     refused: the input is wrong or foreseen not to work
    3     failed while running
    130   stopped by SIGINT      143  stopped by SIGTERM
    141   whoever read standard output went away
    1     a bug in loraft, with its traceback

This module knows the codes and the wording. It refuses to know what any command does.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec

import typer

from loraft.cli.wording import in_words_of
from loraft.errors import Failed, LoraftError, Problem, Stopped

__all__ = ["end_with", "ends_well"]

Arguments = ParamSpec("Arguments")

BUG = "This is a bug in loraft: nothing you typed should end in a traceback. Please report it with the lines above."

OF_THE_MACHINE = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE,
        errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE,
    }
)  # fmt: skip
"""What a system refuses for reasons of its own: no bug of ours, wherever it comes up."""


def ends_well(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Wraps a command so that whatever it raises becomes a few lines and an exit code.

    A command that has `as_json` prints its problems as a JSON document too.
    """

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            with _terminable():
                command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.BadParameter):
            raise
        except LoraftError as error:
            problems = in_words_of(kwargs, error)
            raise typer.Exit(end_with(error, problems, as_json=bool(kwargs.get("as_json")))) from None
        except (KeyboardInterrupt, typer.Abort) as stop:  # typer's is a question that was answered by Ctrl-C
            print("stopped.", file=sys.stderr)
            raise typer.Exit(128 + getattr(stop, "signal_number", signal.SIGINT)) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
                failed = Failed(error.strerror or str(error), where=error.filename and os.fsdecode(error.filename))
                raise typer.Exit(end_with(failed, failed.problems, as_json=bool(kwargs.get("as_json")))) from None
            traceback.print_exc()
            print(BUG, file=sys.stderr)
            raise typer.Exit(1) from None

    return run


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it holds is put away first."""

    signal_number = signal.SIGTERM


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception; training has a way of its own, that saves the state first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with(error: LoraftError, problems: Sequence[Problem], *, as_json: bool = False) -> int:
    """Tells what is wrong, and returns the exit code that says of what kind it is."""
    from loraft.cli.render import print_json, print_message, print_problems

    exit_code = error.stopped_exit_code if isinstance(error, Stopped) else error.exit_code
    if isinstance(error, Stopped):
        (problem, *_) = problems
        print_message(problem.message)
        if problem.remedy:
            print_message(problem.remedy)
    else:
        print_problems(problems)
    if as_json:
        print_json({"problems": [problem.as_dict() for problem in problems], "exit_code": exit_code})
    return exit_code
