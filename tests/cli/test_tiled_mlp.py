"""`training.tiled_mlp` through the command line: the run of whole feed-forward parts, begun, broken off and resumed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loraft import api
from loraft.baselines.fit_memory import fit_memory
from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig
from loraft.errors import Interrupted
from loraft.kernels.tiled_mlp import TILE, _Tiled, tile_mlps
from loraft.models.device import CUDA_TAKES, StatedDevice
from loraft.planning.planned_memory import ROOM
from loraft.planning.run_plan import TILED, plan_run
from tests.cli.conftest import Loraft, WriteConfig
from tests.cli.test_streamed_layers import memory_of_its_own, outcome  # noqa: F401 - a fixture
from tests.tiny import save_tiny
from tests.training.building import ROWS_OF, tiny_config, write_rows
from tests.training.test_trainer import stop_at
from tests.words import Wording

KEY = "training.tiled_mlp"
SMALL = 8
"""Tokens of a tile: fewer than a batch of these rows has."""


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let tiles be small; the tokens of those that are computed."""
    given: list[int] = []
    plain = _Tiled.of_tile
    monkeypatch.setattr(_Tiled, "of_tile", lambda self, tile: (given.append(tile.shape[1]), plain(self, tile))[1])
    monkeypatch.setattr("loraft.training.built_model.tile_mlps", partial(tile_mlps, tile=SMALL))
    monkeypatch.setattr("loraft.planning.planned_memory.TILE", SMALL)
    return given


def config_in(folder: Path, name: str, tiled: object = True, **options: Any) -> RunConfig:
    options = {"training__max_steps": 2, "training__output_dir": str(folder / name), **options}
    return tiny_config(folder, training__tiled_mlp=tiled, **options)


@pytest.mark.slow
def test_a_run_in_tiles_is_that_of_whole_parts_up_to_the_rounding_of_sums(
    loraft: Loraft, config: WriteConfig, tiles: list[int]
) -> None:
    losses = {}
    for tiled in ("false", "true"):
        assert not tiles
        result = loraft("train", str(config()), f"{KEY}={tiled}", f"training.output_dir=tiled-{tiled}")
        assert result.exit_code == 0, result.stderr
        lines = (Path(f"tiled-{tiled}") / "metrics.jsonl").read_text().splitlines()
        losses[tiled] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert tiles
    assert max(tiles) <= SMALL
    assert losses["true"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bytes_and_auto_goes_on_with_what_it_was(tmp_path: Path, tiles: list[int]) -> None:
    options = {"training__save_steps": 1, "lora__dropout": 0.2}
    whole = api.train(config_in(tmp_path, "whole", **options))
    begun = config_in(tmp_path, "broken", **options)
    with pytest.raises(Interrupted):
        api.train(begun, observer=stop_at(1))
    tiles.clear()
    resumed = api.train(config_in(tmp_path, "broken", "auto", **options), resume=True)
    assert tiles
    assert load_config(resumed.run_folder / "config.yaml").training.tiled_mlp is True
    assert outcome(resumed.run_folder) == outcome(whole.run_folder)


@pytest.mark.slow
@pytest.mark.usefixtures("memory_of_its_own")
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, "offload"])
def test_layers_that_are_fed_give_the_same_bytes(
    method: str, checkpointing: object, tmp_path: Path, tiles: list[int]
) -> None:
    options = {"method": method, "training__gradient_checkpointing": checkpointing}
    save_tiny(tmp_path / "model", "llama", num_hidden_layers=4)
    write_rows(tmp_path / "train.jsonl", ROWS_OF["causal_lm"]())
    model = {"name_or_path": str(tmp_path / "model"), "dtype": "float32"}
    resident = api.train(config_in(tmp_path, "resident", model=model, **options))
    fed = api.train(config_in(tmp_path, "fed", model={**model, "stream_layers": True}, **options))
    assert tiles
    assert outcome(fed.run_folder) == outcome(resident.run_folder)


def test_a_type_whose_part_is_no_module_is_refused(
    loraft: Loraft, config: WriteConfig, place: Path, wording: Wording
) -> None:
    save_tiny(place / "opt", "opt")
    result = loraft("check", str(config()), f"{KEY}=true", "model.name_or_path=opt")
    assert result.exit_code == 2
    assert KEY in result.stderr
    wording(result.stderr)


def test_where_no_batch_is_longer_than_a_tile_true_is_said_to_change_nothing(
    loraft: Loraft, config: WriteConfig
) -> None:
    said = f"{KEY} changes nothing: no planned batch has more than the {TILE:,} tokens of a tile"
    assert said in json.loads(loraft("check", str(config()), f"{KEY}=true", "--json").stdout)["notes"]
    assert said not in loraft("check", str(config()), "--json").stdout


def between(folder: Path) -> StatedDevice:
    """A GPU whose memory recomputed layers are not enough for, and tiles are."""
    needed = []
    for tiled in (True, False):
        asked = config_in(folder, "run", tiled, training__gradient_checkpointing=True)
        needed.append(plan_run(asked, StatedDevice("cuda", 10**12)).memory.peak_bytes)
    assert needed[0] < needed[1]
    return StatedDevice("cuda", CUDA_TAKES + int(sum(needed) / 2 / ROOM))


def test_auto_takes_tiles_where_recomputed_layers_are_not_enough_and_says_so(tmp_path: Path, tiles: list[int]) -> None:
    there = between(tmp_path)
    plan = plan_run(config_in(tmp_path, "run", "auto"), there)
    decided = plan.config.training
    assert (decided.gradient_checkpointing, decided.tiled_mlp, TILED in plan.notes) == (True, True, True)
    with_room = plan_run(config_in(tmp_path, "run", "auto"), StatedDevice("cuda", 10**12))
    assert (with_room.config.training.tiled_mlp, TILED in with_room.notes) == (False, False)


def test_a_config_that_turns_tiles_off_fits_with_auto(tmp_path: Path, tiles: list[int]) -> None:
    asked = config_in(
        tmp_path, "run", tiled=False, training__gradient_checkpointing="offload", training__optim="adafactor",
        training__per_device_train_batch_size=1,
    )  # fmt: skip
    needed = plan_run(asked, StatedDevice("cuda", 10**12)).memory.peak_bytes
    fitting = fit_memory(asked, gpu_memory=CUDA_TAKES + needed - 1)
    assert fitting.changes == {KEY: "auto"}
    assert "feed-forward parts are computed some tokens at a time" in fitting.words
