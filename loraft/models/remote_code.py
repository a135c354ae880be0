"""Code that a model brings: it runs only where the person who runs loraft says so, for one call, and is never saved.

No file and no config can say so. The permission belongs to a call with all that it loads, and ends with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
PARAMETER = "trust_remote_code"
_trusted: ContextVar[bool] = ContextVar(PARAMETER, default=False)


def is_trusted() -> bool:
    """Whether code of models may run."""
    return _trusted.get()


@contextmanager
def trusting(trusted: bool) -> Iterator[None]:
    """Let the code of models run meanwhile, or not."""
    before = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(before)


def as_trusted(verb: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function that trusts the code of models where its `trust_remote_code`, or that of its `model`, is true."""
    described = inspect.signature(verb)

    @functools.wraps(verb)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        given = described.bind(*args, **kwargs).arguments
        with trusting(given.get(PARAMETER, False) or getattr(given.get("model"), PARAMETER, False)):
            return verb(*args, **kwargs)

    return run
