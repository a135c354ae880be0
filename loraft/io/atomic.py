"""A folder that is there whole, or not at all, and the JSON files in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loraft.errors import AdapterError
from loraft.io.build_once import flush
from loraft.io.checksums import NOT_SEALED, RECORD, seal
from loraft.io.disk_space import disk_errors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; on leaving without an error it becomes `folder`, replacing what was there.

    Every file is synchronised before the rename, and has the mode that the umask gives to new files: safetensors
    would leave 0600. After an error `folder` is as it was. So it is after a kill, save for one between the two renames
    of a replacement: then the old folder lies beside, as `.NAME.previous`, and the next writing takes it back first.

    Raises:
        DiskFullError: If the disk fills up while the files are written.
    """
    staging, previous = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "previous"))
    with disk_errors(folder, remedy="Free some space."):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            restore_previous(folder)
            shutil.rmtree(staging, ignore_errors=True)
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


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Write `loraft.json`, with the sizes and sha256 of the other files, when these are all there."""
    write_json(folder / RECORD, {**record, "files": seal(folder, NOT_SEALED)})


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a file that people read too: indented, with every letter as it is."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
