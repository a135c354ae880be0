"""A Python process of ours that is asked one question and answers in lines of JSON: heard, and gone however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

Answer = dict[str, Any]


class ProcessEndedError(Exception):
    """A process ended otherwise than it should: with an exit code, or where that is below 0 by a signal."""

    def __init__(self, code: int, said: str) -> None:
        """Say why, as far as its code and what it wrote on its standard error tell."""
        lines = said.strip().splitlines()
        why = f"its process ended with exit code {code}{f': {lines[-1].strip()}' if lines else ''}"
        if code == -signal.SIGKILL:
            why = "its process was killed, most likely by the system because memory ran out"
        elif code < 0:
            why = f"its process was ended by {signal.Signals(-code).name}"
        super().__init__(why)
        self.code = code


def answers_of(
    program: str,
    question: bytes,
    environment: Mapping[str, str],
    *arguments: str,
    folder: Path | None = None,
    until_closed: bool = False,
) -> Generator[Answer]:
    """What a process that runs `program` answers to a question, as it comes; closing this ends the process.

    It finds what this process finds, and nothing in the `folder` that it runs in. Where it is heard `until_closed`, one
    that ends by itself has not answered.

    Raises:
        ProcessEndedError: It ended otherwise than it should.
    """
    command = [sys.executable, "-P", "-c", program, *arguments]
    pipe, path = subprocess.PIPE, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            command, env={**environment, **path}, stdin=pipe, stdout=pipe, stderr=errors, cwd=folder
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(OSError):  # one that died already is found out below
                child.stdin.write(question)
                child.stdin.close()
            for line in child.stdout:
                if line.endswith(b"\n"):  # else the process died in the middle of it
                    yield json.loads(line)
            if (code := child.wait()) or until_closed:
                errors.seek(0)
                raise ProcessEndedError(code, errors.read().decode("utf-8", "replace"))
        finally:
            child.kill()


def answering() -> Callable[[Mapping[str, object]], None]:
    """In such a process: what tells an answer, by a channel of its own, for what libraries print is none."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=channel, flush=True)
