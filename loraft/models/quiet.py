"""Calls into transformers, without its log tables and progress bars, and with its exceptions as ours.

This module knows how transformers talks. It refuses to know what is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from loraft.errors import ModelError

__all__ = ["quietly_reading"]

LIBRARY_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError, RuntimeError)
"""What transformers raises where a model's files are not what it expects."""


@contextmanager
def quietly_reading(path: Path) -> Iterator[None]:
    """Silence transformers while it reads `path`; what matters of its logs, the caller asks for.

    Raises:
        ModelError: transformers cannot read `path`, with the first line of its reason.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except LIBRARY_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"transformers cannot read it: {reason[0]}", where=str(path)) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
