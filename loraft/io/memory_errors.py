"""Memory that ran out, as one error: torch says it in two ways, and Python in a third."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraft.errors import OutOfMemoryError


@contextmanager
def memory_errors(
    message: str, *, remedy: str, where: str | None = None, key: str | None = None, parameter: str | None = None
) -> Iterator[None]:
    """Turn what is raised where memory is out into an error with a remedy; all else passes.

    Raises:
        OutOfMemoryError: The memory of the device, or of the machine, did not suffice.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not out:
            raise
        raise OutOfMemoryError(message, where=where, key=key, remedy=remedy, parameter=parameter) from error
