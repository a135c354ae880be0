"""The process that opens a file of pickled tensors, started with nothing that it has no need of."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from loraft.errors import ModelError, Problem
from loraft.io.asked_process import ProcessEndedError, answers_of

SERVE = "from loraft.converting.unpickled_file import serve; serve()"
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ")
"""What it gets of the environment, in which tokens may stand."""
TOO_SLOW = "took more time to open than a file of its size may"


def rewritten(source: Path, out: Path, ties: Mapping[str, str], progress: Callable[[int], None]) -> dict[str, Any]:
    """Let a process of its own write a file of pickled tensors as safetensors; what it wrote, as `rewrite` tells it.

    Raises:
        ModelError: The file holds something else than tensors, or its process was ended.
    """
    question = json.dumps({"source": str(source), "out": str(out), "ties": {**ties}}).encode()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    try:
        with closing(answers_of(SERVE, question, environment, folder=out.parent, until_closed=True)) as told:
            for answer in told:
                if "done" in answer:
                    progress(int(answer["done"]))
                elif "problem" in answer:
                    raise ModelError.several([Problem(**answer["problem"])])
                elif "written" in answer:
                    written: dict[str, Any] = answer["written"]
                    return written
    except ProcessEndedError as ended:
        why = TOO_SLOW if ended.code == -signal.SIGXCPU else str(ended)
    raise ModelError(why, where=source, remedy="Do not use this file.")
