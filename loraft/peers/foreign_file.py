"""A file of another tool: a YAML file or a command line becomes keys with values, each with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraft.config.aliases import BOOLS, name_of
from loraft.config.config_file import file_text
from loraft.config.schema_info import keys_of
from loraft.config.validation_errors import refuse
from loraft.config.yaml_nodes import Value, in_words, read_yaml
from loraft.errors import ConfigError
from loraft.peers.command_line import ForeignKey, holds_a_command, import_instead, read_command

Peer = Literal["axolotl", "llama-factory", "trl"]
NAMES: Mapping[Peer, str] = {"axolotl": "axolotl", "llama-factory": "LLaMA-Factory", "trl": "TRL"}
"""What each tool is called."""
OTHERS = "files of other tools are not read: `loraft.init` begins a config by looking at rows."
MARKS: Mapping[Peer, frozenset[str]] = {
    "axolotl": frozenset({
        "base_model", "sequence_len", "micro_batch_size", "num_epochs", "datasets", "val_set_size", "adapter",
    }),
    "llama-factory": frozenset({
        "stage", "finetuning_type", "template", "cutoff_len", "lora_rank", "lora_target", "dataset", "dataset_dir",
        "do_train", "infer_backend", "quantization_bit", "preprocessing_num_workers", "export_dir",
    }),
    "trl": frozenset({
        "dataset_name", "use_peft", "lora_r", "dataset_text_field", "max_seq_length", "dataset_train_split",
        "dataset_test_split", "assistant_only_loss", "completion_only_loss", "dataset_config", "load_in_4bit",
    }),
}  # fmt: skip
"""Keys by which a file of each tool is recognised."""
OF_PROCESSES = {"distributed_type": "accelerate", "compute_environment": "accelerate", "zero_optimization": "DeepSpeed"}
"""Keys of files that say how the processes of a run share it, and nothing of what is trained."""
GROUPED = re.compile(r"[0-9]{1,3}(_[0-9]{3})+")
"""A number as YAML 1.1 takes it, which is what these tools read."""


@dataclass(frozen=True)
class ForeignFile:
    """What a file of another tool says.

    Attributes:
        keys: By their names in the tables: small letters and `_`.
        command: The subcommand or script of a command line, such as sft; None of a YAML file.
    """

    path: Path
    peer: Peer
    keys: Mapping[str, ForeignKey]
    command: str | None = None


def read_foreign_file(path: Path, peer: Peer | None = None) -> ForeignFile:
    """The file of another tool, recognised by its keys where `peer` does not say whose it is.

    Raises:
        ConfigError: It is no such file: it cannot be read, is a config of loraft, or nothing tells whose it is.
    """
    text = file_text(str(path))
    if not text.strip():
        raise ConfigError("is empty", where=path)
    if holds_a_command(text):
        command = read_command(text, str(path))
        found = {**command.flags}
        config = found.pop("config", None)
        if config is not None:
            beside, here = path.parent / str(config.value), Path(str(config.value))
            name = str(here if here.is_file() and not beside.is_file() else beside)
            found = _of_yaml(file_text(name), name) | found
        whose = peer or command.peer or _recognised(path, found, import_instead(text))
        return ForeignFile(path, whose, found, command.script)
    found = _of_yaml(text, str(path))
    return ForeignFile(path, peer or _recognised(path, found), found)


def _of_yaml(text: str, name: str) -> dict[str, ForeignKey]:
    top, wrong = read_yaml(text, name)
    if top is None or wrong:
        refuse(wrong)
    if not isinstance(top.content, dict):
        remedy = import_instead(text)
        message = f"holds {in_words(top.content)}, and neither keys nor a command"
        if remedy is not None:
            message = "holds no keys, and names a file that does"
        remedy = remedy or f"It must be a YAML file of keys, or a command line such as trl sft …; {OTHERS}"
        raise ConfigError(message, where=name, remedy=remedy)
    return {
        name_of(key): ForeignKey(_as_they_read(node.value), key, node.key.text) for key, node in top.content.items()
    }


def _as_they_read(value: Value) -> Value:
    """A value of YAML 1.2 as YAML 1.1 has it: `yes` and `off` are truth values, and `1_000` is a number."""
    if isinstance(value, dict):
        return {key: _as_they_read(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_they_read(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if GROUPED.fullmatch(value):
        return int(value.replace("_", ""))
    word = BOOLS.get(value.lower())
    return value if word is None else word == "true"


def _recognised(path: Path, keys: Mapping[str, ForeignKey], otherwise: str | None = None) -> Peer:
    """Whose file it is, by its keys; `otherwise` is what to do where these tell nothing."""
    if {"model", "data"} <= keys.keys() and all(
        isinstance(keys[section].value, dict) and {*keys[section].value} <= {*keys_of((section,))}  # type: ignore[misc]
        for section in ("model", "data")
    ):
        raise ConfigError("is a config of loraft already", where=path, remedy="`loraft.check` reads it as it is.")
    if of := next((tool for key, tool in OF_PROCESSES.items() if key in keys), None):
        message = f"is a config of {of}: it says how processes share a run, and not what is trained"
        remedy = "Import the file of the training; how processes share it is said in the section distributed."
        raise ConfigError(message, where=path, remedy=remedy)
    counts: dict[Peer, int] = {peer: len(marks & keys.keys()) for peer, marks in MARKS.items()}
    if "model_name_or_path" in keys:  # axolotl calls it base_model
        counts["axolotl"] = 0
    most = max(counts.values())
    likely: list[Peer] = [peer for peer, count in counts.items() if count == most]
    if most == 0 or len(likely) > 1:
        named = ", ".join(NAMES.values())
        message = f"is not recognised by its keys as a file of {named}"
        remedy = otherwise or f"If it is of one of them, say which: `peer='axolotl'`; {OTHERS}"
        raise ConfigError(message, where=path, remedy=remedy)
    return likely[0]
