"""`loraft tune`: what is refused before the first trial."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Loraft, WriteConfig


@pytest.mark.parametrize("named", [".", "/", ""])
def test_a_folder_is_no_config(loraft: Loraft, named: str) -> None:
    done = loraft("tune", named)
    assert (done.exit_code, "is a folder" in done.stderr) == (2, True), done.stderr


def test_a_folder_where_the_config_would_be_written_is_met_before_the_trials(
    loraft: Loraft, config: WriteConfig
) -> None:
    path = config()
    path.with_name(f"{path.stem}-tuned.yaml").mkdir()
    done = loraft("tune", str(path), "--overwrite")
    assert done.exit_code == 2
    assert "-tuned.yaml: is there already" in done.stderr


def test_a_folder_in_which_nothing_can_be_written_is_met_before_the_trials(
    loraft: Loraft, config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path.parent)
    done = loraft("tune", str(path))
    assert done.exit_code == 2
    assert "-tuned.yaml: cannot be written" in done.stderr
    assert not path.with_name("runs").exists()
