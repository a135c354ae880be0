"""The examples that axolotl, LLaMA-Factory and TRL come with: how much of them is answered, and what becomes a config.

`examples.jsonl` has the keys of 90 examples of axolotl 0.19.0 and of all 58 of LLaMA-Factory 0.9.5 with a model (from
their source distributions on PyPI), and the command lines of TRL 1.16 and of its repository; long values are cut. All
three are published under the Apache License 2.0.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from loraft.config.aliases import SAME_VALUE, answer_to_key, name_of
from loraft.config.schema_info import places_of
from loraft.errors import ConfigError
from loraft.peers.command_line import ForeignKey, read_command
from loraft.peers.foreign_file import ForeignFile, Peer
from loraft.peers.import_config import import_file
from loraft.peers.translation import TranslatedKey

EXAMPLES = Path(__file__).with_name("examples.jsonl")


def foreign_file(said: Mapping[str, Any]) -> ForeignFile:
    if "command" in said:
        command = read_command(said["command"], said["file"])
        return ForeignFile(Path(said["file"]), "trl", command.flags, command.script)
    keys = {name_of(key): ForeignKey(value, key, said["file"]) for key, value in said["keys"].items()}
    return ForeignFile(Path(said["file"]), said["from"], keys)


@cache
def outcomes(peer: Peer) -> list[tuple[ForeignFile, list[TranslatedKey] | ConfigError]]:
    """Each example of a tool, with what became of its keys, or why it is refused."""
    found: list[tuple[ForeignFile, list[TranslatedKey] | ConfigError]] = []
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        if said["from"] == peer:
            file = foreign_file(said)
            try:
                found.append((file, list(import_file(file).rows)))
            except ConfigError as error:
                found.append((file, error))
    return found


def answered(peer: Peer) -> Iterator[tuple[str, bool]]:
    """Each occurrence of a key, and whether it is translated or named with a reason; of a refused file by the table."""
    for file, rows in outcomes(peer):
        known = {row.key: row.known for row in rows} if isinstance(rows, list) else {}
        for name, key in file.keys.items():
            by_table = bool(places_of(name) or name in SAME_VALUE or answer_to_key(name, key.value))
            yield key.written, known[key.written] if isinstance(rows, list) else by_table


def is_one_gpu_lora(file: ForeignFile) -> bool:
    """Whether an example trains an adapter by supervised fine-tuning on one GPU, as far as its keys tell."""
    said = {name: key.value for name, key in file.keys.items()}
    if any(said.get(key) for key in ("rl", "deepspeed", "fsdp", "fsdp_config", "reward_model", "num_processes")):
        return False
    if file.peer == "axolotl":
        return said.get("adapter") in ("lora", "qlora")
    if file.peer == "llama-factory":
        return (said.get("stage"), said.get("finetuning_type")) == ("sft", "lora") and bool(said.get("do_train"))
    return said.get("use_peft") is True and file.command == "sft"


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["axolotl", "llama-factory", "trl"])
def test_of_the_keys_of_examples_at_least_95_of_100_are_answered(peer: Peer) -> None:
    occurrences = list(answered(peer))
    assert len(occurrences) > {"axolotl": 3000, "llama-factory": 1100, "trl": 100}[peer]
    unanswered = {key for key, is_answered in occurrences if not is_answered}
    share = sum(is_answered for _, is_answered in occurrences) / len(occurrences)
    assert share >= 0.99, unanswered


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("peer", ["trl", "llama-factory", "axolotl"])
def test_each_key_of_an_example_has_one_row(peer: Peer) -> None:
    for file, rows in outcomes(peer):
        if isinstance(rows, list):
            of_the_file = [row.key for row in rows if row.key and "[" not in row.key and "." not in row.key]
            assert sorted(of_the_file) == sorted(key.written for key in file.keys.values()), file.path


@pytest.mark.slow
def test_every_example_of_lora_on_one_gpu_becomes_a_config_that_the_schema_takes() -> None:
    asked = {peer: [(file, rows) for file, rows in outcomes(peer) if is_one_gpu_lora(file)] for peer in get_args(Peer)}
    assert [(file.path, rows) for found in asked.values() for file, rows in found if not isinstance(rows, list)] == []
    assert {peer: len(found) for peer, found in asked.items()} == {"axolotl": 46, "llama-factory": 17, "trl": 3}


@pytest.mark.slow
def test_every_field_of_trl_is_answered() -> None:
    from trl.scripts.utils import ScriptArguments
    from trl.trainer.model_config import ModelConfig
    from trl.trainer.sft_config import SFTConfig

    names = {field.name for kind in (SFTConfig, ModelConfig, ScriptArguments) for field in dataclasses.fields(kind)}
    of_rows = {"dataset_test_split"}
    assert {name for name in names - of_rows if not places_of(name) and answer_to_key(name, True) is None} == set()


@pytest.mark.slow
def test_what_is_refused_is_no_training_of_ours() -> None:
    refused = {
        str(file.path): str(error)
        for peer in get_args(Peer)
        for file, error in outcomes(peer)
        if not isinstance(error, list)
    }
    reasons = ("there is no", "there are no partly frozen models", "is of a file that trains nothing", "names no rows")
    assert {path for path, why in refused.items() if not any(reason in why for reason in reasons)} == set()
    assert len(refused) == 4 + 22
