"""A config file for a test, and the problems that reading it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from loraft.errors import ConfigError, Problem

LEAST = "model: {name_or_path: a/b}\ndata: {train: rows.jsonl}\n"


def write(folder: Path, text: str | bytes) -> Path:
    """`text` as a config file in `folder`."""
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, overrides: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with a config, with places that begin at the file's name."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    folder = f"{path.parent}/"
    return [
        Problem(p.message, p.where and p.where.removeprefix(folder), p.key, p.remedy) for p in caught.value.problems
    ]


def only(path: Path, overrides: Sequence[str] = ()) -> Problem:
    """The one problem of a config."""
    found = problems(path, overrides)
    assert len(found) == 1, found
    return found[0]
