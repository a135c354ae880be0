"""Points between two operations on files, at which a fork of the tests can be killed, refused or held up.

Python's audit hooks tell of each operation before it happens; a hook cannot be removed, so that these functions are for
forks. Files of tensors are written by a library that tells nothing: here they are written in quarters.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
import safetensors.torch

Reached = Callable[[Path, str], None]
"""Told of a file that is about to be changed, and by which operation."""

FOLDER_AT: dict[str, int | None] = {
    "open": None, "os.chmod": 2, "os.mkdir": 2, "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.truncate": None,
    "os.utime": 3, "shutil.rmtree": 1,
}  # fmt: skip
"""What changes files, and which of its values is the open folder that a name is meant in."""
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def before_each_change(root: Path, reached: Reached) -> None:
    """Have `reached` called before each operation of this process that changes a file beneath `root`."""
    top = str(root.absolute())

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in FOLDER_AT and (event != "open" or given[2] & TO_WRITE):
            path = _path(given, FOLDER_AT[event])
            if f"{path}/".startswith(f"{top}/"):
                reached(Path(path).relative_to(top), event)

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(f"{top}/"):
            reached(Path(path).relative_to(top), "fsync")

    sys.addaudithook(hook)
    os.fsync = synced
    safetensors.torch.serialize_file = safetensors.numpy.serialize_file = _in_quarters(top, reached)


def _path(given: tuple[Any, ...], folder_at: int | None) -> str:
    """The file that an event is about, whichever way it was named; what is told of an open one is not said again."""
    if isinstance(given[0], int):
        return ""
    folder = None if folder_at is None else given[folder_at]
    start = "" if folder in (None, -1) else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.abspath(os.path.join(start, os.fsdecode(given[0])))


def _in_quarters(top: str, reached: Reached) -> Callable[..., None]:
    def write(tensors: dict[str, Any], filename: str | Path, metadata: dict[str, str] | None = None) -> None:
        content = safetensors.serialize(tensors, metadata)
        path = os.path.abspath(filename)
        with open(path, "wb") as file:
            for quarter in range(4):
                file.write(content[len(content) * quarter // 4 : len(content) * (quarter + 1) // 4])
                file.flush()
                if path.startswith(f"{top}/"):
                    reached(Path(path).relative_to(top), "write")

    return write


def signalled_at(
    root: Path, count: int, among: Callable[[Path], bool] = lambda _: True, number: int = signal.SIGKILL
) -> Callable[[], None]:
    """For a fork: send it a signal before the change of that count, from 1, of the files `among` those in `root`."""
    left = [count]

    def reached(path: Path, _: str) -> None:
        if among(path):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    return lambda: before_each_change(root, reached)
