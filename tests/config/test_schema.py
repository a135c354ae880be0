"""The shorthands of the schema, and its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig
from loraft.config.sections import StackLayers
from tests.config.written_files import LEAST, write


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, LEAST))
    with pytest.raises(ValidationError):
        config.lora.r = 8  # type: ignore[misc]


@pytest.mark.parametrize("layers", ["all", "first:2", "last:12", "middle:4", "4-11", [0, 5, 31]])
def test_layers_by_words_ranges_and_lists(layers: str | list[int]) -> None:
    values = {"model": {"name_or_path": "x"}, "data": {"train": "y"}, "lora": {"layers": layers}}
    assert RunConfig.model_validate(values).lora.layers == (tuple(layers) if isinstance(layers, list) else layers)


@pytest.mark.parametrize("layers", ["some", "first:0", "last", "4-", "all\n", "", [], [-1], ["0"], 3, True])
def test_layers_that_are_none(layers: object) -> None:
    values = {"model": {"name_or_path": "x"}, "data": {"train": "y"}, "lora": {"layers": layers}}
    with pytest.raises(ValidationError):
        RunConfig.model_validate(values)


def test_sources_in_every_shorthand() -> None:
    values = {"model": {"name_or_path": "x"}, "data": {"train": "a", "eval": ["b", {"path": "c", "weight": 2}]}}
    data = RunConfig.model_validate(values).data
    assert [source.path for source in data.train] == ["a"]
    assert isinstance(data.eval, tuple)
    assert [(source.path, source.weight) for source in data.eval] == [("b", 1.0), ("c", 2.0)]


def test_layers_of_two_stacks(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {layers: {encoder: last:2, decoder: [0, 1]}}\n")
    layers = load_config(path).lora.layers
    assert layers == StackLayers(encoder="last:2", decoder=(0, 1))
    assert load_config(path, ["lora.layers.encoder=all"]).lora.layers == StackLayers(encoder="all", decoder=(0, 1))


def test_batches_that_are_kept_leave_no_part_of_a_source_unseen() -> None:
    data = {"train": [{"path": "a", "weight": 0.5}], "eval": None, "shuffle": "batches"}
    with pytest.raises(ValidationError, match="draws a part of a source anew"):
        RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": data})
    RunConfig.model_validate({"model": {"name_or_path": "x"}, "data": {**data, "train": [{"path": "a", "weight": 2}]}})
