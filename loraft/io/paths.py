"""Where files are: the folder of the cache, and whether a file can be written to a place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from loraft.errors import ConfigError, DataError, InvalidInputError

CONVERSION = "converted-2"
"""The folder of converted models in the cache; the number changes when what conversion writes does."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What a name must look like to be looked up in the Hub; any other can only be a path."""


def cache_folder() -> Path:
    """`LORAFT_CACHE`, or the platform's cache folder: what is in it can be made again."""
    chosen = os.environ.get("LORAFT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("loraft")


def made_cache_folder() -> Path:
    """The folder of the cache; where it is not there it is made for its user alone, for rows are kept in it.

    Raises:
        OSError: It cannot be made.
    """
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def check_output_file(
    path: Path, *, reads: Iterable[Path] = (), parameter: str | None = None, error: type[InvalidInputError] = DataError
) -> None:
    """Refuse, before anything is read, a file that cannot be written to; what it holds is not looked at.

    Raises:
        InvalidInputError: Of the class `error`: it is a folder or one of the files that are read to write it, or there
            is no folder for it.
    """
    if path.is_dir():
        message, remedy = "is a folder", "Name a file in it."
    elif not path.parent.is_dir():
        message, remedy = f"there is no folder {path.parent}", "Make it first."
    elif path.exists() and any(other.exists() and path.samefile(other) for other in reads):
        message, remedy = "is a file that this command reads", "Name another file."
    else:
        return
    raise error(message, where=path, parameter=parameter, remedy=remedy)


def check_config_place(path: Path, *, reads: Iterable[Path] = (), overwrite: bool) -> None:
    """Refuse, before anything is read, a file that a config cannot be written to.

    Raises:
        ConfigError: It is there already, is one of the files that are read, has another ending, or there is no folder
            for it.
    """
    check_output_file(path, reads=reads, error=ConfigError)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError("does not end in .yaml", where=path, remedy=f"Name it {path.name}.yaml.")
    if path.exists() and not overwrite:
        remedy = "Name another file, or replace it with `overwrite`."
        raise ConfigError("is there already", where=path, remedy=remedy)


def begins_with(path: Path, mark: str) -> bool:
    """Whether a file has a mark near its beginning, as the pages have that loraft writes."""
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(400)
    except OSError:
        return False


@contextmanager
def without_bars() -> Iterator[None]:
    """The Hub's library draws no bars meanwhile."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    noisy = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if noisy:
            enable_progress_bars()
