"""What ranks tell one another of an evaluation lies in main memory: a GPU's tensor would go to that GPU on all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraft.distributed.ranks import Ranks
from loraft.training.train_step import evaluate_loss
from tests.training.building import tiny_config, tiny_fit

pytestmark = pytest.mark.gpu(or_cpu=True)


def test_decisions_of_a_classifier_are_told_from_main_memory(tmp_path: Path) -> None:
    told: list[Any] = []

    class Told(Ranks):
        def gathered(self, value: Any) -> list[Any]:
            told.append(value)
            return [value]

    run, _ = tiny_fit(tiny_config(tmp_path, task="seq_cls"))
    run.ranks = Told()
    found = evaluate_loss(run, run.plan.data.train, 5)
    assert found is not None
    assert "accuracy" in found.figures
    (decisions,) = told
    assert decisions.device.type == "cpu"
    assert decisions.shape == (2, len(run.plan.data.train))
