"""The command line in this process, over the real api and a tiny model that was trained once."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraft import api
from loraft.cli import app as quiet
from loraft.cli.app import app
from loraft.config.config_file import load_config
from loraft.events import Event
from loraft.training.trainer import TrainResult
from tests.tiny import save_tiny

Loraft = Callable[..., Result]
WriteConfig = Callable[..., Path]
Calls = list[dict[str, Any]]

ANSWER = "Paris.\x1b[2J"
"""What the model has learned to answer, whatever it is asked: its end would clear a terminal."""
QUESTIONS = ("Capital?", "Where?", "One?", "Two?")


@dataclass(frozen=True)
class Trained:
    """A folder with a model, rows, `tickets.yaml` and the run that it makes; what training told, and what came of it.

    The run is `run`, and its model answers `ANSWER`. Tests read the folder, and write in a copy: `place`.
    """

    folder: Path
    result: TrainResult
    events: tuple[Event, ...]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny model, trained by the real api until it knows its answer by heart."""
    folder = tmp_path_factory.mktemp("trained")
    save_tiny(folder / "model")
    rows = [{"messages": [_said("user", question), _said("assistant", ANSWER)]} for question in QUESTIONS * 5]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tickets.yaml").write_text(config_text(steps=60, every=20))
    events: list[Event] = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        config = load_config("tickets.yaml", ["training.output_dir=run"])
        result = api.train(config, name="tickets", observer=events.append)
    finally:
        os.chdir(before)
    return Trained(folder, result, tuple(events))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def config_text(train: str = "rows.jsonl", method: str = "lora", *, steps: int = 4, every: int = 2) -> str:
    """A config over the tiny model; `every` so many steps the loss is measured, a prompt answered and a state saved."""
    return (
        f"method: {method}\nmodel: {{name_or_path: model, dtype: float32}}\n"
        "lora: {r: 16}\n"
        f"data: {{train: {train}, eval: rows.jsonl}}\n"
        f"training: {{max_steps: {steps}, learning_rate: 0.03, per_device_train_batch_size: 4, logging_steps: 2,"
        f" eval_steps: {every}, save_steps: {every}, sample_prompts: ['Capital?']}}\n"
        "generation: {max_new_tokens: 12}\n"  # a model that knows nothing yet does not end
    )


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
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="loraft")

    return run


@pytest.fixture
def place(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A copy of the trained folder, which is the current one."""
    folder = tmp_path / "place"
    shutil.copytree(trained.folder, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(place: Path) -> WriteConfig:
    """Writes another `tickets.yaml`, of a run of four steps, into the copy."""

    def write(train: str = "rows.jsonl", method: str = "lora") -> Path:
        Path("tickets.yaml").write_text(config_text(train, method))
        return Path("tickets.yaml")

    return write


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments of every call of the api, save for who watches it; the call itself goes on as ever."""
    made: Calls = []
    for verb in ("answer_file", "check", "compare", "complete", "generate", "merge", "train"):
        monkeypatch.setattr(api, verb, _noted(getattr(api, verb), made))
    return made


def _noted(verb: Callable[..., object], made: Calls) -> Callable[..., object]:
    @functools.wraps(verb)
    def called(*args: object, **kwargs: object) -> object:
        given = inspect.signature(verb).bind(*args, **kwargs).arguments
        made.append({name: value for name, value in given.items() if name not in ("observer", "command")})
        return verb(*args, **kwargs)

    return called
