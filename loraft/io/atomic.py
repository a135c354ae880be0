"""Files and folders that are there whole, or not at all, and JSON files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from loraft.errors import AdapterError
from loraft.io.resources import disk_errors


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        AdapterError: If the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise AdapterError("it holds no JSON object", where=str(path))
    return value


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a file that people read too: indented, with every letter as it is."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a file as UTF-8; it is on disk when this returns, and after an error or a kill `path` is as it was.

    A kill leaves `.NAME.PID` beside it. `errors` says what becomes of what is no text, as `str.encode` has it.

    Raises:
        OSError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(text.encode("utf-8", errors))
        flush(beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path, *, remedy: str = "Free some space.") -> Iterator[Path]:
    """Give the place of a file to write; on leaving without an error it becomes `path`, replacing what was there.

    It is synchronised before the rename. After an error `path` is as it was; a kill leaves `.NAME.partial-PID` beside
    it, which the next writing of `path` removes.

    Raises:
        DiskFullError: If the disk fills up while the file is written, with `remedy`.
    """
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path, remedy=remedy):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(f".{escape(path.name)}.partial-*"):
                stale.unlink(missing_ok=True)
            yield beside
            flush(beside)
            beside.replace(path)
            flush(path.parent)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_dir(folder: Path, *, remedy: str = "Free some space.") -> Iterator[Path]:
    """Give an empty folder to write into; on leaving without an error it becomes `folder`, replacing what was there.

    Every file is synchronised before the rename, and has the mode that the umask gives to new files: safetensors
    would leave 0600. After an error `folder` is as it was. So it is after a kill, save for one between the two renames
    of a replacement: then the old folder lies beside, as `.NAME.previous`, and the next writing takes it back first.

    Raises:
        DiskFullError: If the disk fills up while the files are written, with `remedy`.
    """
    # What a killed process has started may still be writing, so that each process has a folder of its own.
    staging, previous = (folder.with_name(f".{folder.name}.{end}") for end in (f"partial-{os.getpid()}", "previous"))
    with disk_errors(folder, remedy=remedy):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            restore_previous(folder)
            for stale in folder.parent.glob(f".{escape(folder.name)}.partial*"):
                shutil.rmtree(stale, ignore_errors=True)
            staging.mkdir()
            yield staging
            _settle(staging)
            _swap(staging, folder, previous)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def restore_previous(folder: Path) -> None:
    """Put back a folder that a kill between the two renames of its replacement has left beside its place."""
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)


def _settle(staging: Path) -> None:
    probe = staging / ".mode"
    probe.touch()  # a new file's mode is 0666 & ~umask, told without setting the umask of the whole process
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            path.chmod(mode)
        flush(path)
    flush(staging)


def _swap(staging: Path, folder: Path, previous: Path) -> None:
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    staging.rename(folder)
    flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
