"""Running loraft as a person does: in this process, or in a fork of it where a signal or a stream is what is tested."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

import loraft.api  # so that the forks below have it
from loraft.__main__ import main


@dataclass(frozen=True)
class Done:
    """How a run of loraft ended."""

    returncode: int
    stdout: str
    stderr: str


def loraft(*words: str, cwd: Path, stdin: str | None = None) -> Done:
    """Run loraft in a folder, as a person does; in this process, which is left as it was."""
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin or "")
        given.seek(0)
        with _as_before(), contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patched:
            for name, file, how in (("stdin", given, "r"), ("stdout", out, "w"), ("stderr", err, "w")):
                patched.setattr(sys, name, open(os.dup(file.fileno()), how, buffering=1))  # noqa: SIM115
            patched.setattr(sys, "argv", ["loraft", *words])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            for stream in (sys.stdin, sys.stdout, sys.stderr):
                stream.close()
        for file in (out, err):
            file.seek(0)
        return Done(code, out.read(), err.read())


@contextmanager
def _as_before() -> Iterator[None]:
    """A command hushes the libraries of its process; afterwards they may speak as before."""
    environment, disabled = dict(os.environ), logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.disable(disabled)


def started(
    *words: str,
    cwd: Path,
    stdin: str | None = None,
    output: int | None = None,
    errors: int | None = None,
    first: Callable[[], object] = lambda: None,
) -> int:
    """Begin loraft in a process of its own, a fork of this one that has the libraries already, and give its number.

    What it says goes into files, or to `output` and `errors`, which are open already. `first` is called in the fork
    before anything else: what it changes is changed there alone.
    """
    _files(cwd)[0].write_text(stdin or "")
    with warnings.catch_warnings():
        # From Python 3.12 on a fork of a process with threads warns; this child starts none of their work.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        first()
        become(words, cwd, [(_files(cwd)[0], None), (_files(cwd)[1], output), (_files(cwd)[2], errors)])
    return child


def _files(cwd: Path) -> list[Path]:
    return [cwd / f".{name}" for name in ("stdin", "stdout", "stderr")]


def become(words: Sequence[str], cwd: Path, streams: Sequence[tuple[Path, int | None]]) -> NoReturn:
    """Turn this process, a fork, into loraft; streams that are not named stay the ones that it has."""
    code = 1
    try:
        os.chdir(cwd)
        for number, (file, is_open) in enumerate(streams):
            how = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(file, how, 0o644) if is_open is None else is_open, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        sys.argv = ["loraft", *words]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def refused(done: Done) -> str:
    """The message of a refusal, which must be one: exit code 2, nothing on standard output, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())
