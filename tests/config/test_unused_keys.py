"""Which keys and sections of a config are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.config_file import load_config
from loraft.config.unused_keys import unused_keys, unused_sections
from tests.config.written_files import LEAST, write


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
