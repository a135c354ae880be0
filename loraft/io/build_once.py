"""A folder of the cache that is built once, whole or not at all, whoever asks for it and whenever they are killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from loraft.errors import ModelError
from loraft.io.atomic import atomic_dir, write_whole
from loraft.io.checksums import fault_by_manifest, seal
from loraft.io.disk_space import ANOTHER_CACHE, disk_errors

REMADE: list[str] = []


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
        with disk_errors(folder.parent, remedy=ANOTHER_CACHE):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f"{folder.name}.lock"):
                if damage := _fault_of(folder) if folder.is_dir() else None:
                    REMADE.append(f"the cached model {folder.name} was damaged ({damage}), and was made anew")
                    shutil.rmtree(folder)
                if not folder.is_dir():
                    with atomic_dir(folder, remedy=ANOTHER_CACHE) as built:
                        build(built)
                        # Before the folder gets its name: one that is there has its manifest.
                        write_whole(_manifest_of(folder), json.dumps({"files": seal(built)}, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the cache cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(folder.parent),
            remedy=ANOTHER_CACHE,
        ) from error
    return folder


def _manifest_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.manifest.json")


def _fault_of(folder: Path) -> str | None:
    """What is wrong with a folder that was built; None where it is whole, or nobody wrote down what it was."""
    manifest = _manifest_of(folder)
    return fault_by_manifest(folder, manifest) if manifest.exists() else None


def remade() -> tuple[str, ...]:
    """What was made anew since this was last asked, a sentence each."""
    found = tuple(REMADE)
    REMADE.clear()
    return found
