"""Standard output as loraft writes to it: what cannot be written is told, and a reader who has left is no fault.

Help, version, tables, JSON and answers all go this way, whoever prints them.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import typer

from loraft.errors import RunError


def forget(stream: IO[str]) -> None:
    """Points a stream whose reader is gone to nowhere, so that later writes, and Python's own at exit, succeed."""
    with suppress(OSError):  # a stream in memory has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class StandardOutput(io.TextIOWrapper):
    """A stream of text whose failures end a command as any other failure does.

    Raises:
        RunError: What was to be written could not be: the disk behind it is full.
        typer.Exit: With 141, as the shell says it, where whoever read it has gone.
    """

    @classmethod
    def over(cls, stream: io.TextIOWrapper) -> StandardOutput:
        """Takes the place of `stream`, which is of no use afterwards."""
        line_buffering, write_through, encoding = stream.line_buffering, stream.write_through, stream.encoding
        return cls(
            stream.detach(),
            encoding=encoding,
            errors="replace",
            line_buffering=line_buffering,
            write_through=write_through,
        )

    def write(self, text: str, /) -> int:
        """Writes `text`, or tells that it cannot be."""
        if text == "":  # typer tries so what a stream takes, and a full disk would refuse even that
            return 0
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        """Brings on its way what was written, or tells that it cannot be."""
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
            message = f"cannot be written: {error.strerror or error}"
            raise RunError(message, where="standard output") from error
