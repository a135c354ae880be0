"""What is fetched from elsewhere: asked for again where the network, or who answers, fails for the moment.

One process of a machine fetches it for all of them, and those after it ask nobody again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Fetched = TypeVar("Fetched")

SECONDS = (1.0, 2.0, 4.0)
"""How long is waited before each further try."""
FOR_NOW = (408, 425, 429, 500, 502, 503, 504)
"""What servers answer that may answer otherwise in a moment."""
OF_LIBRARIES = {
    "httpx": ("TransportError",),
    "httpx2": ("TransportError",),
    "aiohttp": ("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"),
}
"""How those that ask for us call a connection that fails or is cut."""
_BY_ANOTHER = ContextVar("_BY_ANOTHER", default=False)


def patiently(fetch: Callable[[], Fetched]) -> Fetched:
    """What `fetch` gives, asked for again after a while where it fails for the moment; `SECONDS` says how often.

    What was fetched before a failure is not fetched again where `fetch` keeps it.

    Raises:
        Exception: What the last try raised, or one that another try would not mend.
    """
    for seconds in SECONDS:
        try:
            return fetch()
        except Exception as error:
            if not is_for_now(error):
                raise
        time.sleep(seconds)
    return fetch()


def is_for_now(error: BaseException) -> bool:
    """Whether what was raised may be otherwise in a moment: by its own kind and status, or by those of its cause."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return status in FOR_NOW
    # The Hub's library tells a download of another size than was announced in words alone.
    if isinstance(error, _cut()) or (isinstance(error, OSError) and "Consistency check failed" in str(error)):
        return True
    if error.__cause__ is not None:
        return is_for_now(error.__cause__)
    return isinstance(error, ConnectionError | TimeoutError)


def _cut() -> tuple[type[BaseException], ...]:
    """The classes of `OF_LIBRARIES`, of those that are in use."""
    in_use = ((sys.modules[library], names) for library, names in OF_LIBRARIES.items() if library in sys.modules)
    return tuple(getattr(library, name) for library, names in in_use for name in names)


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
