"""Where files are: the folder of the cache, and whether a file can be written where somebody wants it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_cache_path

from loraft.errors import DataError, InvalidInputError


def cache_folder() -> Path:
    """`LORAFT_CACHE`, or the platform's cache folder: what is in it can be made again."""
    chosen = os.environ.get("LORAFT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("loraft")


def check_output_file(
    path: Path, *, reads: Iterable[Path] = (), parameter: str | None = None, error: type[InvalidInputError] = DataError
) -> None:
    """Refuse, before anything is read, a file that cannot be written to; what it holds is not looked at.

    Args:
        path: The file.
        reads: The files that are read to write it.
        parameter: What names it, for errors.
        error: The class of the error.

    Raises:
        InvalidInputError: It is a folder or one of the files that are read, or there is no folder for it.
    """
    if path.is_dir():
        raise error("is a folder", where=str(path), parameter=parameter, remedy="Name a file in it.")
    if not path.parent.is_dir():
        raise error(f"there is no folder {path.parent}", where=str(path), parameter=parameter, remedy="Make it first.")
    if path.exists() and any(other.exists() and path.samefile(other) for other in reads):
        raise error(
            "is a file that this command reads", where=str(path), parameter=parameter, remedy="Name another file."
        )
