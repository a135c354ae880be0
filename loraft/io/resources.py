"""Disk and memory: room asked for before it is needed, and what ran out all the same, as one error each."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraft.errors import DiskFullError, LoraftError, OutOfMemoryError, ResourceError

ANOTHER_CACHE = "Set LORAFT_CACHE to a folder that can be written and has room."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where there is no room: on a disk, for a person, or in a file, which may have a largest size."""
IN_WORDS = re.compile(rf"\(os error ({'|'.join(map(str, FULL))})\)")
"""How libraries that are written in Rust, safetensors and tokenizers, end what they say of a system's error."""
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|(CUDA|Cuda).{1,20}\bout of memory|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
)
"""What a plain RuntimeError says where there is none: torch of the host; the driver, Triton and libraries of a GPU."""


@contextmanager
def disk_errors(where: Path, *, remedy: str, after: str = "", needed: int | None = None) -> Iterator[None]:
    """Turn what is raised where the disk of `where` is full into an error with a remedy; all else passes.

    `after` says how far the work was, and `needed` how many bytes all of it takes, where that is known.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except LoraftError:
        raise
    except Exception as error:
        if (number := _number_of(error)) not in FULL:
            raise
        what = "the disk filled up"
        if number == errno.EFBIG:
            what = "a file would be larger than this disk, or a limit of this process (ulimit -f), allows"
        message = f"{what}{after and f' after {after}'}: {room_for(needed, where)}"
        raise DiskFullError(message, where=where, remedy=remedy) from error


def room_for(needed: int | None, where: Path) -> str:
    """How many bytes are needed, as far as that is known, and how many are free on the disk of `where`."""
    asked = "more is needed" if needed is None else f"about {needed:,} bytes are needed"
    return f"{asked}, and {free_bytes(where):,} bytes are free"


def free_bytes(path: Path) -> int:
    """How many bytes are free on the disk that a path is on, or would be."""
    return shutil.disk_usage(existing_part(path)).free


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(part for part in (path, *path.absolute().parents) if part.exists())


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number_of(error: Exception) -> int | None:
    """The number of a system's error, whoever tells it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = IN_WORDS.search(str(error))
    return None if found is None else int(found[1])


def require_free_bytes(folder: Path, needed: int, purpose: str, *, remedy: str = ANOTHER_CACHE) -> None:
    """Refuse to begin what will not fit.

    Raises:
        ResourceError: The disk that `folder` is on, or would be, has less than `needed` bytes free.
    """
    if (free := free_bytes(folder)) < needed:
        message = f"{purpose} needs {needed:,} bytes, and {free:,} are free"
        raise ResourceError(message, where=existing_part(folder.absolute()), remedy=remedy)


@contextmanager
def memory_errors(
    message: str,
    *,
    remedy: str | None,
    where: str | Path | None = None,
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
