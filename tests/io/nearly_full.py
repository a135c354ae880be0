"""A disk that fills up in the middle of a write, as a real one does."""

from __future__ import annotations

import errno
from io import FileIO
from typing import Any


class NearlyFull:
    """A file on a disk that takes five more bytes."""

    def __init__(self, file: FileIO) -> None:
        self._file, self._room = file, 5

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: memoryview) -> int:
        """Writes what there is room for."""
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written
