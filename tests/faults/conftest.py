"""Every case that is tried is counted under its promise, for the table that `scripts/torture` prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.faults.table import TRIED

Trial = Callable[[str], AbstractContextManager[None]]
"""`with trial(promise):` tries one case of it, which has held if nothing was raised."""


@pytest.fixture
def trial(request: pytest.FixtureRequest) -> Trial:
    """Count the cases of this test."""

    @contextmanager
    def of(promise: str) -> Iterator[None]:
        case = [promise, 0]
        request.node.user_properties.append((TRIED, case))
        yield
        case[1] = 1

    return of


@pytest.fixture(scope="session")
def torture() -> bool:
    """Whether every case is to be tried, and not the few that CI has time for."""
    return "LORAFT_TORTURE" in os.environ
