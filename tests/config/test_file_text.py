"""Bytes that are no text are refused with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.file_text import MOST_BYTES, checked_text, read_text
from loraft.errors import ConfigError


def test_a_file_of_just_the_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"x" * MOST_BYTES)
    assert len(read_text(path)) == MOST_BYTES


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        read_text("/dev/zero")


def test_the_place_of_a_character_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^run.yaml:2:3: holds the character U\+001B"):
        checked_text("a: b\nc:\x1b[31m", "run.yaml")
