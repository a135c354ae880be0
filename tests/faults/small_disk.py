"""A disk of memory that is as full as a test wants it to be."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harm import contents_of

ROOM = 300_000_000
"""More than any run of a test is refused for beforehand."""
PAGE = 4096
BALLAST = "ballast"
"""A file that takes a page, where nothing else does."""


class SmallDisk:
    """A file system in memory, which root may mount, and whose size may change while it is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leave(self, free: int) -> None:
        """Have so many bytes free, rounded down to pages."""
        if not self.used:  # a size of 0 would be no limit
            (self.folder / BALLAST).write_bytes(bytes(PAGE))
        _mount("-o", f"remount,size={self.used + free // PAGE * PAGE}", self.folder)

    @property
    def used(self) -> int:
        """The bytes that are taken."""
        facts = os.statvfs(self.folder)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    def empty(self) -> None:
        """Have nothing on it, and room for all."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.leave(ROOM)

    @property
    def files(self) -> dict[str, bytes]:
        """Every file that a command left, with all that it holds."""
        return {name: held for name, held in contents_of(self.folder).items() if name != BALLAST}

    def fill_after(self, patched: pytest.MonkeyPatch, check: str, free: int) -> None:
        """Leave so little once `check`, the function that looks for room, was content: somebody else needs the disk."""
        module, _, name = check.rpartition(".")
        looks: Callable[..., Any] = pytest.importorskip(module).__dict__[name]

        def looked(*args: Any, **named: Any) -> Any:
            found = looks(*args, **named)
            self.leave(free)
            return found

        patched.setattr(check, looked)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A small disk, mounted on an empty folder; the test is skipped where that may not be."""
    try:
        _mount("-t", "tmpfs", "-o", f"size={ROOM},mode=755", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        pytest.skip(f"a disk in memory cannot be mounted here: {said}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file grows larger meanwhile: what a system says then, it says in Python and in Rust, on every machine."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
