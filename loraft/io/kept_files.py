"""Files in the cache that save work, or that were read where they cannot be read again; what is not used goes."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from loraft.io.atomic import atomic_dir
from loraft.io.paths import cache_folder, made_cache_folder

MOST_DAYS = 30
"""Entries are removed when they were not used for so many days."""
KEPT = "sources"
"""The folder of rows that were fetched or piped in, each file in a folder of its own."""
LOCKS = "locks"
"""The folder of what is held while one of these is written."""


def kept_file(key: str, name: str, write: Callable[[Path], None], *, anew: bool = False) -> Path:
    """The file of that key in the cache, called `name`; where it is not there, or `anew`, `write` makes it.

    Raises:
        OSError: It cannot be written.
        DiskFullError: The disk filled up.
    """
    folder = cache_folder() / KEPT / key
    if anew or not (folder / name).is_file():
        lock = made_cache_folder() / LOCKS / f"{key}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # another process may be fetching the same
            if anew or not (folder / name).is_file():
                with atomic_dir(folder) as beside:
                    write(beside / name)
    with suppress(OSError):
        os.utime(folder)  # it was used today
    remove_unused(folder.parent, newest=folder)
    return folder / name


def remove_unused(root: Path, *, newest: Path, most_bytes: float = math.inf) -> None:
    """Remove the folders that were not used for long, and the longest unused where all have more bytes than that."""
    used: dict[Path, float] = {}
    for entry in root.iterdir():
        with suppress(OSError):  # another process removed it
            used |= {entry: entry.stat().st_mtime} if entry.is_dir() else {}
    total, oldest = 0, time.time() - MOST_DAYS * 86_400
    for entry in sorted(used, key=lambda entry: -used[entry]):
        with suppress(OSError):
            total += sum(file.stat().st_size for file in entry.iterdir())
        if entry != newest and (used[entry] < oldest or total > most_bytes):
            shutil.rmtree(entry, ignore_errors=True)
