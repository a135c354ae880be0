"""Disk and memory: room asked for before it is needed, and what ran out all the same, as one error each."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraft.errors import DiskFullError, LoraftError, OutOfMemoryError, ResourceError

ANOTHER_CACHE = "Set LORAFT_CACHE to a folder that can be written and has room."
FULL = (errno.ENOSPC, errno.EDQUOT)
IN_WORDS = re.compile(rf"\(os error ({'|'.join(map(str, FULL))})\)")
"""How libraries that are written in Rust, safetensors and tokenizers, end what they say of a system's error."""
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|CUDA error: out of memory|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
)
"""What a plain RuntimeError says where there is none: torch of the host, the driver and CUDA's libraries of a GPU."""


@contextmanager
def disk_errors(where: Path, *, remedy: str, after: str = "") -> Iterator[None]:
    """Turn what is raised where the disk of `where` is full into an error with a remedy; all else passes.

    `after` says how far the work was.

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
        message = f"the disk filled up{after and f' after {after}'}; {free:,} bytes are free"
        raise DiskFullError(message, where=str(where), remedy=remedy) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return IN_WORDS.search(str(error)) is not None


def require_free_bytes(folder: Path, needed: int, purpose: str, *, remedy: str = ANOTHER_CACHE) -> None:
    """Refuse to begin what will not fit.

    Raises:
        ResourceError: The disk of `folder` has less than `needed` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{purpose} needs {needed:,} bytes, and {free:,} are free"
        raise ResourceError(message, where=str(folder), remedy=remedy)


@contextmanager
def memory_errors(
    message: str,
    *,
    remedy: str | None,
    where: str | None = None,
    key: str | None = None,
    parameter: str | None = None,
    rewords: bool = False,
) -> Iterator[None]:
    """Turn what is raised where memory is out into an error with a remedy; all else passes.

    An error that says so already passes too, unless `rewords`: the caller knows better what helps.

    Raises:
        OutOfMemoryError: The memory of the device, or of the machine, did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OutOfMemoryError) as error:  # torch's own is a RuntimeError
        if not (rewords if isinstance(error, OutOfMemoryError) else is_out_of_memory(error)):
            raise
        raise OutOfMemoryError(message, where=where, key=key, remedy=remedy, parameter=parameter) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a library of CUDA says by it that memory is out."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error)) is not None
