"""A folder that is built once, whole or not at all, whoever asks for it and whenever they are killed.

This module knows locks, temporary names and renames. It refuses to know what is built.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from loraft.errors import ModelError, ResourceError
from loraft.models.disk import disk_errors

__all__ = ["build_once", "flush", "require_free_bytes"]

ELSEWHERE = "Set LORAFT_CACHE to a folder that can be written and has room."


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` filled it if it was not there.

    `build` is given a folder beside it, which gets the real name only when everything in it is on disk. Processes that
    ask at the same time wait for the first; what a killed one left is removed under the lock.

    Raises:
        ModelError: The cache cannot be written.
        DiskFullError: The disk filled up meanwhile.
    """
    if folder.is_dir():
        return folder
    try:
        with disk_errors(folder.parent, remedy=ELSEWHERE):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f"{folder.name}.lock"):
                if not folder.is_dir():
                    _build_beside(folder, build)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the cache cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(folder.parent),
            remedy=ELSEWHERE,
        ) from error
    return folder


def _build_beside(folder: Path, build: Callable[[Path], None]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale)
    beside = folder.parent / f".{folder.name}.{os.getpid()}"
    beside.mkdir()
    try:
        build(beside)
        for path in (*beside.rglob("*"), beside):
            flush(path)
        beside.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_free_bytes(folder: Path, needed: int, purpose: str, *, remedy: str = ELSEWHERE) -> None:
    """Refuse to begin what will not fit.

    Raises:
        ResourceError: The disk of `folder` has less than `needed` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{purpose} needs {needed:,} bytes, and {free:,} are free",
            where=str(folder),
            remedy=remedy,
        )
