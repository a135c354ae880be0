"""Rows that became tokens once, kept so that the next start finds them.

An entry is a folder named by all that its tokens depend on, with arrays and JSON in it and a manifest of their
sha256.
It is written beside its place and renamed, under a lock. A cache only saves time: one that cannot be written or is
damaged is told, and never an error.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from loraft.io.checksums import sha256_of
from loraft.tokenization.examples import Example

KEPT, BEFORE = "rows-2", ("rows-1",)
"""The folder of kept rows in the cache, and those of earlier versions; the number changes when an entry does."""
MOST_DAYS = 30
MOST_BYTES = 10_000_000_000
"""Entries are removed when they were not used for so many days, and the longest unused where all have more bytes."""
ARRAYS, FACTS, MANIFEST = "rows.safetensors", "facts.json", "manifest.json"


class TokenCache:
    """The place of one set of rows in the cache.

    Attributes:
        notes: What there is to say, a sentence each.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.notes: list[str] = []
        self._root = root / KEPT
        self._folder = self._root / key

    def find(self) -> tuple[list[Example], dict[str, Any]] | None:
        """The examples and facts that were kept; None where there are none, or they are damaged."""
        if not self._folder.is_dir():
            return None
        try:
            _verify(self._folder)
            facts = json.loads((self._folder / FACTS).read_text(encoding="utf-8"))
            examples = _examples(load_file(self._folder / ARRAYS), facts["places"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self.notes.append(f"the rows kept in {self._folder.name[:12]} are damaged ({error}): they are made anew")
            shutil.rmtree(self._folder, ignore_errors=True)
            return None
        with suppress(OSError):
            os.utime(self._folder)  # it was used today
        return examples, facts["facts"]

    def keep(self, examples: Sequence[Example], facts: Mapping[str, Any]) -> None:
        """Keep examples, and facts that JSON holds."""
        described = {"places": [example.where for example in examples], "facts": facts}
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with FileLock(self._root / ".lock"):
                for stale in self._root.glob(".making-*"):
                    shutil.rmtree(stale, ignore_errors=True)
                if not self._folder.is_dir():
                    self._write(_arrays(examples), described)
                _prune(self._root, newest=self._folder)
            for earlier in BEFORE:
                shutil.rmtree(self._root.with_name(earlier), ignore_errors=True)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            self.notes.append(f"the tokens could not be kept for the next start: {reason}")

    def _write(self, arrays: dict[str, np.ndarray[Any, Any]], described: Mapping[str, Any]) -> None:
        beside = self._root / f".making-{os.getpid()}"
        beside.mkdir()
        try:
            save_file(arrays, beside / ARRAYS)
            (beside / FACTS).write_text(json.dumps(described), encoding="utf-8")
            shutil.copymode(beside / FACTS, beside / ARRAYS)  # safetensors writes 0600 whatever the umask
            sums = {name: sha256_of(beside / name) for name in (ARRAYS, FACTS)}
            (beside / MANIFEST).write_text(json.dumps(sums), encoding="utf-8")
            for name in (ARRAYS, FACTS, MANIFEST):
                with (beside / name).open("rb") as file:
                    os.fsync(file.fileno())
            beside.rename(self._folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _arrays(examples: Sequence[Example]) -> dict[str, np.ndarray[Any, Any]]:
    """Columns: `[tokens]` and, for each, `[examples]` where an example ends in it; counts are `[examples]`."""
    types = [example.token_type_ids or [] for example in examples]
    columns = {"ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples], "types": types}
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "trained": np.array([example.trained for example in examples], np.int64),
        "tokens": np.array([example.tokens for example in examples], np.int64),
    }
    for name, rows in columns.items():
        flat = array("i")
        for row in rows:
            flat.extend(row)
        arrays[name] = np.frombuffer(flat, dtype=np.int32) if flat else np.zeros(0, np.int32)
        arrays[f"{name}_ends"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return arrays


def _examples(arrays: Mapping[str, np.ndarray[Any, Any]], places: Sequence[str]) -> list[Example]:
    ids, labels, types = (_rows(arrays[name], arrays[f"{name}_ends"]) for name in ("ids", "labels", "types"))
    counts = (arrays[name].tolist() for name in ("trained", "tokens"))
    each = zip(ids, labels, places, *counts, types, strict=True)
    return [
        Example(i, label, where, trained, tokens, segments or None)
        for i, label, where, trained, tokens, segments in each
    ]


def _rows(flat: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> Iterable[list[int]]:
    start = 0
    for end in ends.tolist():
        yield flat[start:end].tolist()
        start = end


def _verify(folder: Path) -> None:
    """Compare an entry with its manifest.

    Raises:
        ValueError: A file is not what was written.
    """
    sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in (ARRAYS, FACTS):
        if not isinstance(sums, dict) or sha256_of(folder / name) != sums.get(name):
            raise ValueError(f"{name} is not what was written")


def _prune(root: Path, *, newest: Path) -> None:
    """Remove what was not used for long, and the longest unused where there is too much."""
    used = {entry: entry.stat().st_mtime for entry in root.iterdir() if entry.is_dir()}
    total, oldest = 0, time.time() - MOST_DAYS * 86_400
    for entry in sorted(used, key=lambda entry: -used[entry]):
        total += sum(file.stat().st_size for file in entry.iterdir())
        if entry != newest and (used[entry] < oldest or total > MOST_BYTES):
            shutil.rmtree(entry, ignore_errors=True)
