"""Command lines, as people keep them in scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.yaml_nodes import Value
from loraft.errors import ConfigError
from loraft.peers.command_line import holds_a_command, read_command
from loraft.peers.foreign_file import read_foreign_file
from tests.words import Wording


@pytest.mark.parametrize(
    ("text", "script", "flags"),
    [
        ("trl sft --lora_r 8 --use_peft\n", "sft", {"lora_r": 8, "use_peft": True}),
        (
            "# train\nCUDA_VISIBLE_DEVICES=0 python x/sft.py \\\n  --lr=2e-4 \\\n  --no_packing",
            "sft",
            {"lr": 2e-4, "packing": False},
        ),
        ("accelerate launch --num_processes 2 sft.py --a b", "sft", {"num_processes": 2, "a": "b"}),
        ("python -m trl.scripts.sft --a 'b c'", "sft", {"a": "b c"}),
        ("trl sft --lora_target_modules q_proj v_proj", "sft", {"lora_target_modules": ["q_proj", "v_proj"]}),
        (
            """trl sft --lr_scheduler_kwargs '{"min_lr_rate": 0.1}'""",
            "sft",
            {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        ),
        ("set -e\nllamafactory-cli train --stage sft --max_steps -1", "train", {"stage": "sft", "max_steps": -1}),
        ("trl dpo --beta 0.1", "dpo", {"beta": 0.1}),
        ("uv run trl dpo --beta 0.1", "dpo", {"beta": 0.1}),
        ("nohup python x/dpo.py --eos '<|a|>' --b c > log.txt 2>&1 &", "dpo", {"eos": "<|a|>", "b": "c"}),
        ("A=1 trl sft --b c 2>&1 | tee trl.log && echo done", "sft", {"b": "c"}),
        (
            "export OUT='runs'\nM=a/b\nNAME=${OUT}/x\ntrl sft --a $M --b \"${NAME}-1\" --c $M/d\n",
            "sft",
            {"a": "a/b", "b": "runs/x-1", "c": "a/b/d"},
        ),
    ],
)
def test_flags_are_read_with_their_values(text: str, script: str, flags: dict[str, Value]) -> None:
    assert holds_a_command(text)
    found = read_command(text, "train.sh")
    assert found.script == script
    assert {name: flag.value for name, flag in found.flags.items()} == flags


def test_a_flag_knows_its_line() -> None:
    found = read_command("trl sft \\\n  --a 1 \\\n  --b 2\n", "train.sh")
    assert [flag.where for flag in found.flags.values()] == ["train.sh:2", "train.sh:3"]


@pytest.mark.parametrize("text", ["base_model: trl sft\n", "model: {name_or_path: python x.py}\n", "a: --b\n"])
def test_yaml_is_no_command(text: str) -> None:
    assert not holds_a_command(text)


@pytest.mark.parametrize(
    "text",
    [
        "trl sft --a $MODEL",
        "if [ x ]; then\nM=a\nelse\nM=b\nfi\ntrl sft --a $M",
        "trl sft --a runs/$(date)",
        "trl sft --a 'b",
        "trl sft --a 1\ntrl sft --a 2",
        "trl sft stray --a 1",
        "trl sft --a '{b'",
    ],
)
def test_a_command_that_cannot_be_read_is_told_at_its_line(text: str, wording: Wording) -> None:
    with pytest.raises(ConfigError) as refused:
        read_command(text, "train.sh")
    wording(str(refused.value))


@pytest.mark.parametrize(
    "text",
    [
        "axolotl train x.yml",
        "#!/bin/bash\nset -e\naxolotl train x.yml --debug\n",
        "accelerate launch -m axolotl.cli.train x.yml",
        "accelerate launch -m axolotl.cli.train x.yml --debug",
        "llamafactory-cli train x.yml",
        "llamafactory-cli train x.yml --lora_rank 4",
    ],
)
def test_of_a_command_that_reads_a_yaml_file_that_is_the_one_to_import(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.sh").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_foreign_file(tmp_path / "train.sh")
    (problem,) = refused.value.problems
    assert "x.yml" in (problem.remedy or "")
    assert "nor a command" not in problem.message


def test_the_yaml_of_a_command_is_read_beside_it_or_where_one_is_and_flags_go_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sft.yaml").write_text("model_name_or_path: a/b\nlora_r: 4\n")
    (tmp_path / "scripts").mkdir()
    for script in (Path("train.sh"), Path("scripts", "train.sh")):
        (tmp_path / script).write_text("trl sft --config sft.yaml --lora_r 8\n")
        monkeypatch.chdir(tmp_path if script.parent.name else tmp_path / "scripts")
        found = read_foreign_file(tmp_path / script)
        assert {name: key.value for name, key in found.keys.items()} == {"model_name_or_path": "a/b", "lora_r": 8}
        assert (found.peer, found.command) == ("trl", "sft")
