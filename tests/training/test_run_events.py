"""What trackers are told of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from loraft.training.run_events import tracked
from tests.training.building import tiny_config


def test_a_tracker_is_told_the_config_without_the_secrets_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that was made in Python may hold one, and a tracker's page is often seen by others."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(Accelerator, "init_trackers", lambda _, name, config, **how: told.update(config))
    source = "https://me:pass-of-mine@host/rows.jsonl"
    config = tiny_config(tmp_path, data__train=source, training__report_to=["tensorboard"])
    with tracked(lambda _: None, config, tmp_path):
        pass
    assert "[a password in an address]" in told["data.train"]
    assert "pass-of-mine" not in str(told)
    assert told["lora.r"] == config.lora.r
