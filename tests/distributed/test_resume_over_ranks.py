"""A run of ranks goes on bit for bit with as many, and at the same row and step with any other number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from loraft import api
from loraft.errors import Interrupted
from tests.distributed.forked import forked
from tests.training.building import judged, preferred, tiny_config, write_rows
from tests.training.test_trainer import stop_at


def trained(folder: Path, name: str, world: int, stop: int | None = None, **overrides: Any) -> None:
    """Train in a folder of that name, or go on there; with `stop` until a signal comes at this step."""

    def act(_: object) -> str:
        config = tiny_config(folder, training__output_dir=str(folder / name), **overrides)
        resume = (folder / name / "config.yaml").exists()
        try:
            api.train(config, resume=resume, **({"observer": stop_at(stop)} if stop else {}))
        except Interrupted:
            return "stopped"
        return "done"

    tiny_config(folder, **overrides)  # its files, once
    assert forked(world, act) == ["stopped" if stop else "done"] * world


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without what is measured of the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    machine = ("tokens_per_second", "peak_bytes")
    return [{key: value for key, value in json.loads(line).items() if key not in machine} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_as_many_ranks_go_on_bit_for_bit_with_dropout(tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"method": method, "lora__dropout": 0.3, "training__gradient_accumulation_steps": 2}
    options |= {"training__per_device_train_batch_size": 2, "data__eval": 0.3, "training__eval_steps": 2}
    trained(tmp_path, "whole", 2, **options)
    trained(tmp_path, "stopped", 2, stop=3, **options)
    trained(tmp_path, "stopped", 2, **options)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    kind = "model/model" if method == "full" else "adapter/adapter_model"
    ends = [load_file(tmp_path / name / f"{kind}.safetensors") for name in ("whole", "stopped")]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_stream_of_preferences_is_that_of_one_process_and_goes_on(tmp_path: Path, loss: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", {"dpo": preferred, "kto": judged}[loss](24))
    options: dict[str, Any] = {
        "task": "preference", "preference__loss": loss, "data__train": str(rows), "data__streaming": True,
        "data__shuffle_buffer": 5, "training__per_device_train_batch_size": 2,
    }  # fmt: skip
    trained(tmp_path, "alone", 1, training__gradient_accumulation_steps=2, **options)
    trained(tmp_path, "whole", 2, **options)
    trained(tmp_path, "stopped", 2, stop=3, **options)
    trained(tmp_path, "stopped", 2, **options)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    both = list(zip(logged(tmp_path / "alone"), logged(tmp_path / "whole"), strict=True))
    assert len(both) == 6
    for alone, ranks in both:
        assert (alone["step"], alone["epoch"], alone["tokens"]) == (ranks["step"], ranks["epoch"], ranks["tokens"])
        # Float32 sums in another order, over six steps of Adam.
        assert ranks["loss"] == pytest.approx(alone["loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("now", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_steps(tmp_path: Path, now: int) -> None:
    options: dict[str, Any] = {"training__per_device_train_batch_size": 2, "training__max_steps": 9}
    trained(tmp_path, "whole", 2, **options)
    trained(tmp_path, "moved", 2, stop=3, **options)
    trained(tmp_path, "moved", now, **options)
    both = zip(logged(tmp_path / "whole"), logged(tmp_path / "moved"), strict=True)
    for before, after in both:
        assert (before["step"], before["epoch"], before["tokens"]) == (after["step"], after["epoch"], after["tokens"])
        # Float32 sums in another order, over six steps of Adam.
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-4)
