"""A disk that filled up, as one error: Python says it by a number, and safetensors and tokenizers only in words."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraft.errors import DiskFullError, LoraftError

FULL = (errno.ENOSPC, errno.EDQUOT)
IN_WORDS = re.compile(rf"\(os error ({'|'.join(map(str, FULL))})\)")
"""How libraries that are written in Rust end what they say of a system's error."""


@contextmanager
def disk_errors(where: Path, *, remedy: str) -> Iterator[None]:
    """Turn what is raised where the disk of `where` is full into an error with a remedy; all else passes.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except LoraftError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        there = next(folder for folder in (where, *where.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        raise DiskFullError(f"the disk filled up; {free:,} bytes are free", where=str(where), remedy=remedy) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return IN_WORDS.search(str(error)) is not None
