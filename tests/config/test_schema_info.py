"""The schema, read as data, and which of its keys a config uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from loraft.config.schema import RunConfig
from loraft.config.schema_info import expected, keys_of, path_of, places_of, unused_keys
from tests.config.written_files import LEAST, write


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("method", "lora, qlora or full"),
        ("seed", "a whole number of at least 0 and below 4294967296"),
        ("lora.r", "a whole number of at least 1"),
        ("training.learning_rate", "auto or a number above 0"),
        ("training.gradient_checkpointing", "auto, true, false or offload"),
        ("training.max_steps", "a whole number of at least 1 or null"),
        ("training.sample_prompts", "a list of texts"),
        ("lora.rank_pattern", "a mapping of names, each to a whole number of at least 1"),
        ("training.warmup_steps", "a whole number of steps, or a share of all steps below 1"),
    ],
)
def test_what_a_key_takes_in_words(key: str, words: str) -> None:
    assert str(expected(path_of(key))) == words


def test_every_key_of_the_schema_says_what_it_takes() -> None:
    for section in RunConfig.model_fields:
        for path in [(section,), *((section, key) for key in keys_of((section,)))]:
            words = str(expected(path))
            assert words
            assert "typing" not in words
            assert "<class" not in words


def test_places_inside_lists_and_mappings() -> None:
    assert str(expected(("data", "train", 3, "weight"))) == "a number above 0"
    assert str(expected(("data", "train", "weight"))) == "a number above 0"
    assert str(expected(("lora", "rank_pattern", "q_proj"))) == "a whole number of at least 1"
    assert expected(("lora", "nothing")) is None
    assert expected(("lora", "r", "deeper")) is None


def test_where_a_key_is_at_home() -> None:
    assert places_of("dtype") == ("model.dtype",)
    assert places_of("seed") == ("seed",)
    assert places_of("weight") == ()


def test_dots_in_the_name_of_a_pattern_belong_to_it() -> None:
    assert path_of("lora.rank_pattern.layers.0.q_proj") == ("lora", "rank_pattern", "layers.0.q_proj")
    assert path_of("training.max_steps") == ("training", "max_steps")


def test_sections_that_the_method_does_not_use(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "lora: {r: 8}\nquantization: {type: nf4}\n")
    assert tuple(unused_keys(load_config(path))) == (("the section quantization", "method: lora"),)
    assert set(unused_keys(load_config(path, ["method=full"]))) == {
        ("the section lora", "method: full"),
        ("the section quantization", "method: full"),
    }
    assert tuple(unused_keys(load_config(path, ["method=qlora"]))) == ()


def test_keys_that_the_task_does_not_use(tmp_path: Path) -> None:
    path = write(tmp_path, LEAST + "training: {class_weights: balanced, sample_prompts: [Hi]}\ngeneration: {}\n")
    assert tuple(unused_keys(load_config(path))) == (("training.class_weights", "task: causal_lm"),)
    assert tuple(unused_keys(load_config(path, ["task=seq_cls"]))) == (("training.sample_prompts", "task: seq_cls"),)
    assert [*unused_keys(load_config(path, ["task=seq_cls", "generation.temperature=0"]))][-1][0] == "generation"
    assert tuple(unused_keys(load_config(path, ["data.source_lang=en", "task=seq2seq_lm"]))) == (
        ("training.class_weights", "task: seq2seq_lm"),
    )


@pytest.mark.parametrize(
    ("override", "unused"),
    [
        ("training={group_by_length: true}", ("training.group_by_length", "data.packing: fill")),
        ("data.eval=[{path: e.jsonl, weight: 2}]", ("the weight of a source", "data.eval")),
        ("training={sample_prompts: [Hi]}", ("training.sample_prompts", "data.eval: null")),
        ("training={eval_steps: 50}", ("training.eval_steps", "data.eval: null")),
        ("training.run_name=mine", ("training.run_name", "training.report_to: []")),
        ("data.shuffle_buffer=5", ("data.shuffle_buffer", "data.streaming: false")),
        ("training={adam_beta2: 0.95, optim: adafactor}", ("training.adam_beta2", "training.optim: adafactor")),
    ],
)
def test_keys_that_another_key_leaves_without_use(tmp_path: Path, override: str, unused: tuple[str, str]) -> None:
    path = write(tmp_path, LEAST)
    others = ["data.packing=fill"] if "fill" in unused[1] else ["data.eval=null"] if "null" in unused[1] else []
    assert tuple(unused_keys(load_config(path, [*others, override]))) == (unused,)
    assert tuple(unused_keys(load_config(path, others))) == ()
