"""Names of modules, compared by their path parts, and the ones most like a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["is_within", "matches", "nearest"]


def matches(module: str, name: str) -> bool:
    """Whether `name` is the full name of `module` or its last path parts."""
    return module == name or module.endswith(f".{name}")


def is_within(module: str, outer: str) -> bool:
    """Whether `module` is `outer` or lies inside it."""
    return module == outer or module.startswith(f"{outer}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The names most like `name`, or all of them where none is."""
    short = sorted({known.rpartition(".")[2] for known in names})
    close = difflib.get_close_matches(name.rpartition(".")[2], short, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else f"The model has {', '.join(short)}."
