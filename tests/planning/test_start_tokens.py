"""An adapter that begins with directions of what is read needs a token for each: the plan knows whether there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.config.schema import RunConfig
from loraft.errors import AdapterError
from loraft.planning.run_plan import plan_run
from tests.training.building import tiny_config


def run_from(folder: Path, init: str, **besides: Any) -> RunConfig:
    """A classifier's run, whose 12 rows have one decision each."""
    return tiny_config(folder, task="seq_cls", lora__init=init, **besides)


def test_fewer_tokens_than_directions_are_refused_by_the_plan(tmp_path: Path) -> None:
    plan_run(run_from(tmp_path, "eva", lora__r=12))
    plan_run(run_from(tmp_path, "default", lora__r=13))
    with pytest.raises(AdapterError, match="13 directions") as refused:
        plan_run(run_from(tmp_path, "eva", lora__r=13))
    assert refused.value.problems[0].key == "lora.init"


def test_a_run_that_was_to_be_replaced_stays_where_a_stream_has_too_few(tmp_path: Path) -> None:
    api.train(run_from(tmp_path, "default", training__max_steps=1))
    saved = tmp_path / "run/adapter/adapter_model.safetensors"
    before = saved.read_bytes()
    streamed = run_from(tmp_path, "eva", lora__r=13, data__streaming=True, data__labels=["late", "order", "text"])
    with pytest.raises(AdapterError, match="13 directions"):
        api.train(streamed, overwrite=True)
    assert saved.read_bytes() == before
