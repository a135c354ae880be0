"""Files and folders that are there whole, or not at all, and JSON files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from loraft.errors import AdapterError, RunFolderError
from loraft.io.resources import disk_errors

FREE_SPACE = "Free some space."


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        AdapterError: If the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"it cannot be read: {error}", where=path) from error
    if not isinstance(value, dict):
        raise AdapterError("it holds no JSON object", where=path)
    return value


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a file that people read too: indented, with every letter as it is."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_whole(path: Path, text: str, *, errors: str = "strict", remedy: str = FREE_SPACE) -> None:
    """Write a file as UTF-8; it is on disk when this returns, and after an error or a kill `path` is as it was.

    A kill leaves `.NAME.PID` beside it. `errors` says what becomes of what is no text, as `str.encode` has it.

    Raises:
        OSError: It cannot be written.
        DiskFullError: The disk is full, with `remedy`.
    """
    beside, content = path.with_name(f".{path.name}.{os.getpid()}"), text.encode("utf-8", errors)
    with disk_errors(path, remedy=remedy, needed=len(content)):
        try:
            beside.unlink(missing_ok=True)  # a link of that name would be followed
            beside.write_bytes(content)
            flush(beside)
            beside.replace(path)
        except BaseException:
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                beside.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_file(path: Path, *, remedy: str = FREE_SPACE, needed: int | None = None) -> Iterator[Path]:
    """Give the place of a file to write; on leaving without an error it becomes `path`, replacing what was there.

    It is synchronised before the rename. After an error `path` is as it was; a kill leaves `.NAME.partial-PID` beside
    it, which the next writing of `path` removes.

    Raises:
        DiskFullError: If the disk fills up while the file is written, with `remedy` and the bytes `needed`.
        RunFolderError: Another process is writing it.
    """
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path, remedy=remedy, needed=needed):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.touch()
            with _held(beside, path):
                yield beside
                flush(beside)
                beside.replace(path)
                flush(path.parent)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_dir(folder: Path, *, remedy: str = FREE_SPACE, needed: int | None = None) -> Iterator[Path]:
    """Give an empty folder to write into; on leaving without an error it becomes `folder`, replacing what was there.

    Every file is synchronised before the rename, and has the mode that the umask gives to new files: safetensors
    would leave 0600. After an error `folder` is as it was. So it is after a kill, save for one between the two renames
    of a replacement: then the old folder lies beside, as `.NAME.previous`, and the next writing takes it back first.
    A link is replaced by a folder; what it leads to stays.

    Raises:
        DiskFullError: If the disk fills up while the files are written, with `remedy` and the bytes `needed`.
        NotADirectoryError: A file is there.
        RunFolderError: Another process is writing it.
    """
    # What a killed process has started may still be writing, so that each process has a folder of its own.
    staging, previous = (folder.with_name(f".{folder.name}.{end}") for end in (f"partial-{os.getpid()}", "previous"))
    with disk_errors(folder, remedy=remedy, needed=needed):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists() and not folder.is_dir():  # a file of somebody's
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            shutil.rmtree(staging, ignore_errors=True)  # of a process that had this number before
            staging.mkdir()
            with _held(staging, folder):
                restore_previous(folder)
                yield staging
                _settle(staging)
                _swap(staging, folder, previous)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Tell a file that cannot be written or read, while `out` is made of others, by its name.

    Raises:
        RunFolderError: The system refused one.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else str(out)
        raise RunFolderError(f"cannot be written or read: {error.strerror or error}", where=where) from error


@contextmanager
def _held(own: Path, wanted: Path) -> Iterator[None]:
    """Keep others from writing `wanted` while `own` is what it will be, and remove what killed processes left of it.

    The lock is the system's, which lets go of it when a process ends, however it ends.

    Raises:
        RunFolderError: Another process is writing it.
    """
    with _opened(own) as descriptor:
        with suppress(OSError):  # some network disks lock nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for other in wanted.parent.glob(f".{escape(wanted.name)}.partial*"):
            if other == own:
                continue
            if _is_held(other):
                remedy = "Wait until it has ended, or name another place."
                raise RunFolderError("another process is writing it", where=wanted, remedy=remedy)
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)
        yield


def _is_held(path: Path) -> bool:
    with suppress(OSError), _opened(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def restore_previous(folder: Path) -> None:
    """Put back a folder that a kill between the two renames of its replacement has left beside its place."""
    previous = folder.with_name(f".{folder.name}.previous")
    if os.path.lexists(previous) and not os.path.lexists(folder):
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
    with suppress(OSError):
        remove(previous)
    if os.path.lexists(folder):
        folder.rename(previous)
    staging.rename(folder)
    flush(folder.parent)
    with suppress(OSError):
        remove(previous)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file; of a link itself alone, as somebody may have put it there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a file, or of a folder, for as long as this is entered."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
