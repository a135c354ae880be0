"""The command line in this process, over an api that answers at once."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loraft.cli import silence as quiet
from loraft.cli.app import app
from tests.cli import fake_api

Loraft = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def _hushed_for_this_test_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every command hushes the process that it runs in; the next test wants its warnings back."""
    for name in (*quiet.QUIET_ENVIRONMENT, "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def loraft(monkeypatch: pytest.MonkeyPatch) -> Loraft:
    """Runs `loraft` with the given arguments."""
    monkeypatch.setitem(sys.modules, "loraft.api", fake_api)
    monkeypatch.setattr("loraft.api", fake_api, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    fake_api.CALLS.clear()

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="loraft")

    return run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Writes `tickets.yaml` into the current folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)

    def write(train: str = "rows.jsonl", method: str = "lora") -> Path:
        text = f"method: {method}\nmodel: {{name_or_path: any}}\nlora: {{r: 8}}\ndata: {{train: {train}}}\n"
        Path("tickets.yaml").write_text(text, encoding="utf-8")
        return Path("tickets.yaml")

    return write
