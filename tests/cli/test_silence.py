"""What other libraries may say."""

from __future__ import annotations

import logging
import os
import warnings
from logging.handlers import BufferingHandler

import pytest

from loraft.cli.app import silence_libraries
from tests.cli.conftest import Loraft


def test_hushed_libraries_neither_warn_nor_log(request: pytest.FixtureRequest) -> None:
    kept = BufferingHandler(capacity=10)
    logger = logging.getLogger("transformers")
    logger.addHandler(kept)
    request.addfinalizer(lambda: logger.removeHandler(kept))
    with warnings.catch_warnings(record=True) as heard:
        silence_libraries()
        warnings.warn("for developers", UserWarning, stacklevel=1)
        logger.warning("for developers")
        logger.error("for everybody")
    assert heard == []
    assert [record.getMessage() for record in kept.buffer] == ["for everybody"]
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    silence_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


@pytest.mark.parametrize(("options", "is_hushed"), [([], True), (["--verbose"], False), (["-v"], False)])
def test_verbose_lets_them_speak(loraft: Loraft, options: list[str], is_hushed: bool) -> None:
    loraft(*options, "schema")
    assert ("TRANSFORMERS_VERBOSITY" in os.environ) == is_hushed
