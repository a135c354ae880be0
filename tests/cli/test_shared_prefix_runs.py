"""`data.shared_prefix` as one asks for it: told beforehand, left where numbers are drawn, learning the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Loraft, WriteConfig
from tests.training.test_trainer import metrics


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), True),
        (("data.shared_prefix=off",), False),
        (("data.packing=off",), False),
        (("lora.dropout=0.1",), False),
        (("training.neftune_noise_alpha=5",), False),
        (("lora.layers=last:1", "data.shuffle=batches", "training.cache_frozen_prefix=true"), True),
    ],
    ids=str,
)
def test_check_tells_whether_it_is_computed_once(
    loraft: Loraft, config: WriteConfig, options: tuple[str, ...], told: bool
) -> None:
    result = loraft("check", str(config()), *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["training"]["shared_prefix"] is told


@pytest.mark.slow
def test_a_run_learns_the_same_with_and_without(loraft: Loraft, config: WriteConfig) -> None:
    losses = {}
    for choice in ("auto", "off"):
        options = (f"data.shared_prefix={choice}", f"training.output_dir={choice}", "training.logging_steps=1")
        result = loraft("train", str(config()), "training.max_steps=3", *options)
        assert result.exit_code == 0, result.stderr
        losses[choice] = [line["loss"] for line in metrics(Path(choice)) if "loss" in line]
    assert losses["auto"] == pytest.approx(losses["off"], rel=1e-5)
    assert losses["auto"] != losses["off"], "rounding tells that one is computed otherwise"
