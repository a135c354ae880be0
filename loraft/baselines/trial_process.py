"""A process that tries a method: started, asked, heard, and gone however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from loraft.errors import RunError
from loraft.models.remote_code import is_trusted

SERVE = "from loraft.baselines.measure_method import serve; serve()"
TRUSTED = "trusted"
"""The argument of a process that may run the code of models, as the one that starts it may."""
Answer = dict[str, Any]


def answers(question: bytes, scratch: Path) -> Generator[Answer]:
    """What a process answers to a question, as it comes; closing this ends the process.

    One that ends otherwise than it should says so in a last answer whose `kind` is `ended`.
    """
    log = scratch / "stderr"
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-P", "-c", SERVE, *([TRUSTED] if is_trusted() else [])]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": path}
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors) as child,
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
            if code := child.wait():
                cause = _cause(code, log.read_text(encoding="utf-8", errors="replace"))
                yield {"kind": "ended", "error": RunError(cause).as_json()}
        finally:
            child.kill()


def _cause(code: int, said: str) -> str:
    """Why a process ended: by a signal, or with an error that it wrote."""
    if code == -signal.SIGKILL:
        return "its process was killed, most likely by the system because memory ran out"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    lines = said.strip().splitlines()
    return f"its process ended with exit code {code}{f': {lines[-1].strip()}' if lines else ''}"
