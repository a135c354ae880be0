"""Signals that go elsewhere for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals_to(handler: Any, *numbers: int) -> Iterator[None]:
    """Have signals of these numbers go to a handler meanwhile: in the main thread, for no other gets any."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if here else {}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)
