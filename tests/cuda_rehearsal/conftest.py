"""The device's part in C++, built once for all processes of the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_rehearsal import guard


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built library; a skip with the reason where there can be none."""
    if (why := guard.unavailable()) is not None:
        pytest.skip(why)
    base = tmp_path_factory.getbasetemp()
    return guard.built(base.parent if base.name.startswith("popen-") else base)
