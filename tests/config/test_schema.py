"""The shorthands of the schema, and its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from loraft.config.files import load_config
from loraft.config.schema import RunConfig, StackLayers, unused_keys, unused_sections
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


def test_sections_that_the_method_does_not_use(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {r: 8}\nquantization: {type: fp4}\n")
    assert unused_sections(load_config(path)) == ("quantization",)
    assert unused_sections(load_config(path, ["method=full"])) == ("lora", "quantization")
    assert unused_sections(load_config(path, ["method=qlora"])) == ()


def test_keys_that_the_task_does_not_use(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "training: {class_weights: balanced, sample_prompts: [Hi]}\ngeneration: {}\n")
    assert unused_keys(load_config(path)) == (("training.class_weights", "task: causal_lm"),)
    assert unused_keys(load_config(path, ["task=seq_cls"])) == (("training.sample_prompts", "task: seq_cls"),)
    assert unused_keys(load_config(path, ["task=seq_cls", "generation.temperature=0"]))[-1][0] == "generation"
    assert unused_keys(load_config(path, ["data.source_lang=en", "task=seq2seq_lm"])) == (
        ("training.class_weights", "task: seq2seq_lm"),
    )


@pytest.mark.parametrize(
    ("override", "unused"),
    [
        ("training={group_by_length: true}", ("training.group_by_length", "data.packing: fill")),
        ("data.eval=[{path: e.jsonl, weight: 2}]", ("the weight of a source", "data.eval")),
        ("training={sample_prompts: [Hi]}", ("training.sample_prompts", "data.eval: null")),
    ],
)
def test_keys_that_another_key_leaves_without_use(tmp_path: Path, override: str, unused: tuple[str, str]) -> None:
    path = write(tmp_path, LEAST)
    others = ["data.packing=fill"] if "fill" in unused[1] else ["data.eval=null"] if "null" in unused[1] else []
    assert unused_keys(load_config(path, [*others, override])) == (unused,)
    assert unused_keys(load_config(path, others)) == ()


def test_layers_of_two_stacks(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {layers: {encoder: last:2, decoder: [0, 1]}}\n")
    layers = load_config(path).lora.layers
    assert layers == StackLayers(encoder="last:2", decoder=(0, 1))
    assert load_config(path, ["lora.layers.encoder=all"]).lora.layers == StackLayers(encoder="all", decoder=(0, 1))
