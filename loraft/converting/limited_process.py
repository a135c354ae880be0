"""The process that opens a file of pickled tensors: started with nothing that it has no need of, heard, and gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from loraft.errors import ModelError, Problem

SERVE = "from loraft.converting.unpickled_file import serve; serve()"
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ")
"""What it gets of the environment, in which tokens may stand."""
WHY = {
    signal.SIGXCPU: "took more time to open than a file of its size may",
    signal.SIGKILL: "its process was killed, most likely by the system because memory ran out",
}
"""Why a process was ended by a signal, where that is known."""


def rewritten(source: Path, out: Path, ties: Mapping[str, str], progress: Callable[[int], None]) -> dict[str, Any]:
    """Let a process of its own write a file of pickled tensors as safetensors; what it wrote, as `rewrite` tells it.

    Raises:
        ModelError: The file holds something else than tensors, or its process was ended.
    """
    command = [sys.executable, "-P", "-c", SERVE]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with (
        TemporaryFile() as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, cwd=out.parent) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(OSError):  # one that died already is found out below
                child.stdin.write(json.dumps({"source": str(source), "out": str(out), "ties": {**ties}}).encode())
                child.stdin.close()
            for line in child.stdout:
                answer = json.loads(line) if line.endswith(b"\n") else {}
                if "done" in answer:
                    progress(int(answer["done"]))
                elif "problem" in answer:
                    raise ModelError.several([Problem(**answer["problem"])])
                elif "written" in answer:
                    written: dict[str, Any] = answer["written"]
                    return written
            raise ModelError(_cause(child.wait(), errors), where=str(source), remedy="Do not use this file.")
        finally:
            child.kill()


def _cause(code: int, errors: IO[bytes]) -> str:
    """Why a process ended without an answer: by a signal, or with an error that it wrote."""
    if code < 0:
        return WHY.get(signal.Signals(-code), f"its process was ended by {signal.Signals(-code).name}")
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f"its process ended with exit code {code}{f': {lines[-1].strip()}' if lines else ''}"
