"""Files that people know by another name than their path: what was piped in lies in the cache."""

from __future__ import annotations

from pathlib import Path

_names: dict[str, str] = {}


def call(path: Path, name: str) -> None:
    """From now on this process calls the file so."""
    _names[str(path)] = name


def called(text: str) -> str:
    """The text with the names that such files are called by, in place of their paths."""
    for path, name in _names.items():
        text = text.replace(path, name)
    return text
