"""What is fetched once for all processes of a machine: one of them does, and those after it ask nobody again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_BY_ANOTHER = ContextVar("_BY_ANOTHER", default=False)


@contextmanager
def fetched_by_another() -> Iterator[None]:
    """Meanwhile what lies elsewhere was fetched just now, by another process of this machine."""
    before = _BY_ANOTHER.set(True)
    try:
        yield
    finally:
        _BY_ANOTHER.reset(before)


def is_fetched() -> bool:
    """Whether what lies elsewhere was fetched just now."""
    return _BY_ANOTHER.get()
