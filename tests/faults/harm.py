"""What becomes of files that a disk, a copy or a person has damaged."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, by its name from there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with all that it holds; locks are nobody's content."""
    return {name: (folder / name).read_bytes() for name in files_of(folder) if not name.endswith(".lock")}


def halve(path: Path) -> None:
    """Cut the second half off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(path: Path, at: int | None = None) -> None:
    """Change one bit, of the byte `at` or of one that is always the same of a file."""
    held, chosen = bytearray(path.read_bytes()), random.Random(path.name)
    place = chosen.randrange(len(held))
    held[place if at is None else at] ^= 1 << chosen.randrange(8)
    path.write_bytes(bytes(held))


HARMS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": halve,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": flip_one_bit,
}


def in_turn(names: Sequence[str], *case: str, every: bool, step: int) -> Sequence[str]:
    """All of the names; or where not every case is tried one in `step`, others in each case."""
    return names if every else names[zlib.crc32(" ".join(case).encode()) % step :: step]
