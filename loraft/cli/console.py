"""How loraft speaks: messages and problems on standard error, results on standard output.

Text that comes from users, files and models is never read as markup, and never moves the cursor.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from loraft.cli.wording import in_options
from loraft.errors import Problem, RunError
from loraft.io.called_files import called
from loraft.io.secrets import redacted


def forget(stream: IO[str]) -> None:
    """Points a stream whose reader is gone to nowhere, so that later writes, and Python's own at exit, succeed."""
    with suppress(OSError):  # a stream in memory has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class StandardOutput(io.TextIOWrapper):
    """A stream of text whose failures end a command as any other does, with 141 where its reader has gone."""

    @classmethod
    def over(cls, stream: io.TextIOWrapper) -> StandardOutput:
        """Takes the place of `stream`, which is of no use afterwards."""
        kept = {name: getattr(stream, name) for name in ("encoding", "line_buffering", "write_through")}
        return cls(stream.detach(), errors="replace", **kept)

    def write(self, text: str, /) -> int:
        """Writes `text`, or raises what a command ends with."""
        if text == "":  # typer tries so what a stream takes, and a full disk would refuse even that
            return 0
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        """Brings on its way what was written, or raises what a command ends with."""
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            forget(self)
            raise typer.Exit(128 + signal.SIGPIPE) from None
        except OSError as error:
            forget(self)
            raise RunError(f"cannot be written: {error.strerror or error}", where="standard output") from error


PIPE_WIDTH = 200
"""The width of a table where there is no terminal to ask: nothing that is read by a program should be folded."""

VISIBLE_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
VISIBLE_CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """`text` with files as people call them, and its control characters made visible, save for line ends and tabs."""
    return called(text).translate(VISIBLE_CONTROLS)


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: what a terminal or a pipe gave may be bytes of something else."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


class LenientConsole(Console):
    """A console that leaves it to the caller what a lost reader means; rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Lets the error through."""
        raise  # noqa: PLE0704 (rich calls this while it handles the error)


def console_on(stream: TextIO) -> Console:
    """A console on `stream` that takes text as it is: no markup, no emoji, no guessed highlights."""
    console = LenientConsole(file=stream, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    return console


def say(*pieces: str | tuple[str, str], prose: bool = False) -> None:
    """Prints one line on standard error, of plain strings and of (string, style) pairs; nobody need read it.

    Only `prose` is broken between words: commands and paths can be copied whole.
    """
    console = console_on(sys.stderr)
    try:
        console.print(Text.assemble(*pieces), soft_wrap=not (prose and console.is_terminal))
    except OSError:
        forget(sys.stderr)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal that something goes on, until it is done, and keeps `stdout` free of what libraries print."""
    console = console_on(sys.stderr)
    shows = console.is_terminal and not console.is_dumb_terminal
    with redirect_stdout(sys.stderr), console.status(Text(what, style="dim")) if shows else nullcontext():
        yield


def print_message(message: str) -> None:
    """A sentence to the user, on standard error."""
    say(printable(redacted(message)))


def print_note(*notes: str) -> None:
    """What was decided or found, a sentence each, on standard error."""
    for note in notes:
        say(("note: ", "cyan"), printable(redacted(in_options(note))), prose=True)


def print_problems(problems: Iterable[Problem]) -> None:
    """Every problem on standard error; what to do about several in a row stands once, below the last of them."""
    listed = list(problems)
    for problem, following in zip(listed, [*listed[1:], None], strict=True):
        place = f"{printable(problem.place)}: " if problem.place else ""
        say(("error: ", "bold red"), (place, "bold"), printable(problem.message))
        if following is None or following.remedy != problem.remedy:
            for line in (problem.remedy or "").splitlines():
                say((f"  {printable(line)}", "dim"))


def print_result(*parts: RenderableType) -> None:
    """Draws on standard output, without blanks at the ends of lines."""
    _draw(parts, sys.stdout)


def print_either(told: object, drawn: Iterable[RenderableType], *, as_json: bool) -> None:
    """What a command tells, on standard output: as JSON, or as it is drawn."""
    if as_json:
        print_json(told)
    else:
        print_result(*drawn)


def print_aside(*parts: RenderableType) -> None:
    """Draws on standard error what is told beside a result that is a file."""
    _draw(parts, sys.stderr)


def _draw(parts: Iterable[RenderableType], stream: TextIO) -> None:
    console = console_on(stream)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    stream.write("\n".join(line.rstrip() for line in capture.get().split("\n")))
    stream.flush()


SENTENCES = ("notes", "warnings", "findings")
"""Under these keys a document has sentences, which are said as one types them."""


def print_json(document: Any) -> None:
    """One JSON document on standard output; what JSON has no number for, such as infinity, is null."""
    for key in SENTENCES if isinstance(document, dict) else ():
        if isinstance(said := document.get(key), list | tuple):
            document = {**document, key: [in_options(each) for each in said]}
    takes_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(_jsonable(document), indent=2, ensure_ascii=not takes_unicode, allow_nan=False)
    print(text, flush=True)


def _jsonable(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
