"""A model that is trained whole and in parts is saved in parts: complete or absent, and no rank ever holds it."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from loraft.adapters.resolve_target import resolve_target
from loraft.distributed.ranks import Ranks
from loraft.errors import AdapterError
from loraft.training.checkpoint import RunState
from loraft.training.save_run import restore_weights, save, weights_in
from tests.distributed.forked import forked
from tests.distributed.part_memory import in_one_step, of_ranks
from tests.distributed.starting import MEASURED, TWO, at_call, done
from tests.distributed.test_resume_over_ranks import logged, trained
from tests.tiny import save_tiny
from tests.training.building import tiny_config

FULL: dict[str, Any] = {
    "method": "full",
    "distributed__strategy": "fsdp2",
    "training__per_device_train_batch_size": 2,
    "training__learning_rate": 1e-3,
}
IN_PARTS = ("method=full", "distributed.strategy=fsdp2", "training.learning_rate=1e-3")


def model_of(run: Path) -> dict[str, Any]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("now", [2, 1, 3])
def test_a_run_goes_on_from_parts(tmp_path: Path, now: int) -> None:
    """Bit for bit with as many ranks; with others the same ten steps to 1e-4."""
    options = {**FULL, "training__max_steps": 12, "training__save_total_limit": 1}
    trained(tmp_path, "whole", 2, **options)
    trained(tmp_path, "moved", 2, stop=2, **options)
    (stopped,) = (tmp_path / "moved" / "checkpoints").iterdir()
    parts = {f"parts/{kind}-0000{rank}-of-00002.safetensors" for kind in ("model", "optimizer") for rank in (1, 2)}
    files = {path.relative_to(stopped).as_posix() for path in stopped.rglob("*") if path.is_file()}
    assert files == parts | {"manifest.json", "rng.safetensors", "state.json"}
    with pytest.raises(AdapterError, match="in the parts of the ranks that trained it"):
        resolve_target(str(stopped))
    trained(tmp_path, "moved", now, **options)
    before, after = logged(tmp_path / "whole"), logged(tmp_path / "moved")
    assert len(after) == 12
    if now == 2:
        assert after == before
        ends = [model_of(tmp_path / name) for name in ("whole", "moved")]
        assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
    for one, other in zip(before, after, strict=True):
        assert (one["step"], one["tokens"]) == (other["step"], other["tokens"])
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


@pytest.mark.slow
def test_ranks_go_on_in_parts_from_what_one_process_saved(tmp_path: Path) -> None:
    options = {**FULL, "training__max_steps": 5, "training__gradient_accumulation_steps": 2}
    trained(tmp_path, "whole", 1, **options)
    trained(tmp_path, "moved", 1, stop=2, **options)
    trained(tmp_path, "moved", 2, **options)
    for one, other in zip(logged(tmp_path / "whole"), logged(tmp_path / "moved"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


@pytest.mark.slow
def test_of_copies_on_two_machines_one_is_saved(tmp_path: Path) -> None:
    tiny_config(tmp_path, **FULL)

    def act(ranks: Ranks) -> bool:
        run = in_one_step(tiny_config(tmp_path, distributed__hybrid_shard=True, **FULL), ranks)
        place = save(run, RunState(step=1))
        before = {name: weight.detach().clone() for name, weight in run.adapted.trainable.items()}
        for weight in run.adapted.trainable.values():
            weight.data.mul_(2)
        restore_weights(run, weights_in(run, place))
        assert len(list(place.glob("parts/model-*"))) == 2
        return all(weight.to_local().equal(before[name].to_local()) for name, weight in run.adapted.trainable.items())

    assert forked(4, act, machines=2) == [True] * 4


@pytest.mark.slow
def test_saving_holds_little_beside_a_ranks_share(tmp_path: Path) -> None:
    """Whole, weights and Adam's state are 160 MB, which rank 0 would gather; the largest tensor is 2."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    config = tiny_config(tmp_path, **FULL, training__max_steps=1)
    save_tiny(tmp_path / "model", **sizes)

    for _, found in of_ranks("saving", {"full": [config]}, tmp_path):
        assert not isinstance(found, str), found
        saving, ending, whole, largest = found
        assert whole > 40 * 2**20
        assert saving < largest + 8 * 2**20
        assert ending < 4 * largest + 8 * 2**20 < whole


def ends(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    weights = {name: each.numpy().tobytes() for name, each in model_of(run).items()}
    return weights, [{key: of for key, of in line.items() if key not in MEASURED} for line in lines]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_parts_are_complete_or_absent_over_all_ranks(place: Path) -> None:
    """Rank 1 is killed while it writes its part, and finds its disk full; the run ends as if nothing had happened."""
    words = ("train", "c.yaml", *IN_PARTS)
    assert done(place, *words, *TWO, "training.output_dir=unbroken").returncode == 0
    writing = "loraft.training.checkpoint:write_parts"
    killed = done(place, *words, *TWO, before=at_call(writing, 1, 4, lambda *_: os.kill(os.getpid(), signal.SIGKILL)))
    assert killed.returncode == 137, killed.stderr
    assert "rank 1 of 2 was ended by SIGKILL" in killed.stderr
    assert [path.name for path in (place / "run/checkpoints").iterdir()] == ["step-000001"]
    full = done(place, *words, *TWO, "--resume", before=at_call(writing, 1, 2, full_disk))
    assert full.returncode == 3, full.stderr
    assert full.stderr.count("error: ") == 1
    assert "the disk filled up while the checkpoint of step 2 was written" in full.stderr
    assert "Traceback" not in full.stderr
    assert [path.name for path in (place / "run/checkpoints").iterdir()] == ["step-000001"]
    again = done(place, *words, *TWO, "--resume")
    assert again.returncode == 0, again.stderr
    assert ends(place / "run") == ends(place / "unbroken")
    assert not list((place / "run").rglob("*partial*"))
