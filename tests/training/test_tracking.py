"""What trackers are told of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from loraft.errors import ConfigError
from loraft.events import Event, Note
from loraft.training.run_dir import RunFolder
from loraft.training.run_events import Evaluated, StepSkipped
from loraft.training.tracking import tracked
from tests.training.building import tiny_config


def test_a_tracker_is_told_the_config_without_the_secrets_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that was made in Python may hold one, and a tracker's page is often seen by others."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(Accelerator, "init_trackers", lambda _, name, config, **how: told.update(config))
    source = "https://me:pass-of-mine@host/rows.jsonl"
    config = tiny_config(tmp_path, data__train=source, training__report_to=["tensorboard"])
    with tracked(lambda _: None, config, RunFolder(tmp_path)):
        pass
    assert "[a password in an address]" in told["data.train"]
    assert "pass-of-mine" not in str(told)
    assert told["lora.r"] == config.lora.r


def failing(*_: object, **__: object) -> None:
    raise ConnectionError("the server of pass-of-mine is gone\nand more")


def test_a_tracker_that_cannot_be_opened_is_refused_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most want to be logged in to."""
    monkeypatch.setattr(TensorBoardTracker, "start", failing)
    with (
        pytest.raises(ConfigError, match="tensorboard cannot be opened") as refused,
        tracked(lambda _: None, tiny_config(tmp_path, training__report_to=["tensorboard"]), RunFolder(tmp_path)),
    ):
        pass
    (problem,) = refused.value.problems
    assert (problem.key, problem.message.rpartition("-")[2]) == ("training.report_to", "mine is gone")


@pytest.mark.slow
@pytest.mark.parametrize("act", ["log", "finish"])
def test_a_tracker_that_fails_on_the_way_is_told_of_once_and_the_run_goes_on(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    events = [StepSkipped(1, 0.5, 1, "why"), Evaluated(2, 1.0, 1.0, 2.7, 3, 1, True)]
    monkeypatch.setattr(TensorBoardTracker, act, failing)
    config = tiny_config(tmp_path, training__report_to=["tensorboard"])
    with tracked(heard.append, config, RunFolder(tmp_path)) as observer:
        for event in events:
            observer(event)
    told = [event.text for event in heard if isinstance(event, Note)]
    assert [text.partition(" ")[0] for text in told] == ["tensorboard"]
    assert [event for event in heard if event in events] == events
