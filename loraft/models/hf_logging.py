"""Calls into transformers, without its log tables and progress bars, and with its exceptions as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path

from transformers.utils import logging

from loraft.errors import LoraftError, ModelError


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers; what matters of its logs, the caller asks for."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def quietly_reading(path: Path) -> Iterator[None]:
    """Silence transformers while it reads `path`.

    Raises:
        ModelError: transformers cannot read `path`, with the first sentence of its reason.
    """
    with quietly():
        try:
            yield
        except LoraftError:
            raise
        except Exception as error:  # what it raises on files that are not as it expects has no common root
            raise ModelError(f"transformers cannot read it: {_reason(error)}", where=str(path)) from error


def _reason(error: Exception) -> str:
    """The first sentence of an error, which may stand on two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
