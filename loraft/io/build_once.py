"""A folder that is built once, whole or not at all, whoever asks for it and whenever they are killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from loraft.errors import ModelError, ResourceError
from loraft.io.checksums import fault, seal
from loraft.io.disk_space import disk_errors

REMADE: list[str] = []
ELSEWHERE = "Set LORAFT_CACHE to a folder that can be written and has room."


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` filled it if it was not there, or is not what `build` made.

    `build` is given a folder beside it, which gets the real name only when everything in it is on disk, with a manifest
    beside it. Processes that ask at the same time wait for the first; what a killed one left is removed under the lock.

    Raises:
        ModelError: The cache cannot be written.
        DiskFullError: The disk filled up meanwhile.
    """
    if folder.is_dir() and _fault_of(folder) is None:
        return folder
    try:
        with disk_errors(folder.parent, remedy=ELSEWHERE):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f"{folder.name}.lock"):
                if damage := _fault_of(folder) if folder.is_dir() else None:
                    REMADE.append(f"the cached model {folder.name} was damaged ({damage}), and was made anew")
                    shutil.rmtree(folder)
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
        shutil.rmtree(stale, ignore_errors=True)  # what a killed one had started may still be writing
    beside = folder.parent / f".{folder.name}.{os.getpid()}"
    beside.mkdir()
    try:
        build(beside)
        for path in (*beside.rglob("*"), beside):
            flush(path)
        _write_manifest(folder, beside)
        beside.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _manifest_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.manifest.json")


def _write_manifest(folder: Path, built: Path) -> None:
    """Write down what was built, before it gets its name: a folder that is there has its manifest."""
    manifest = _manifest_of(folder)
    beside = built.with_name(f"{built.name}.manifest")
    try:
        beside.write_text(json.dumps({"files": seal(built)}, indent=1) + "\n", encoding="utf-8")
        flush(beside)
        beside.replace(manifest)
    finally:
        beside.unlink(missing_ok=True)


def _fault_of(folder: Path) -> str | None:
    """What is wrong with a folder that was built; None where it is whole, or nobody wrote down what it was."""
    try:
        files = json.loads(_manifest_of(folder).read_text(encoding="utf-8"))["files"]
        found = fault(folder, files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None if found is None else str(found)


def remade() -> tuple[str, ...]:
    """What was made anew since this was last asked, a sentence each."""
    found = tuple(REMADE)
    REMADE.clear()
    return found


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
