"""A text of another tool, translated as a file of it would be."""

from __future__ import annotations

from pathlib import Path

from loraft.config.yaml_nodes import Value
from loraft.peers.foreign_file import read_foreign_file
from loraft.peers.import_config import ImportedConfig, import_file

STARTS = {
    "axolotl": "base_model: a/b\ndatasets: [{path: rows.jsonl, type: chat_template}]\nsequence_len: 64\n",
    "llama-factory": "model_name_or_path: a/b\ndataset: rows\nstage: sft\nfinetuning_type: lora\n",
    "trl": "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\n",
}
"""What a file of each tool needs."""


def imported(folder: Path, text: str, name: str = "theirs.yaml") -> ImportedConfig:
    """What becomes of a file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return import_file(read_foreign_file(path))


def become(folder: Path, peer: str, text: str) -> dict[str, Value]:
    """The keys of the config that `text`, behind what a file of the tool needs, comes to."""
    done = imported(folder, STARTS[peer] + text)
    assert done.peer == peer
    return {ours: value for row in done.rows for ours, value in row.becomes.items()}
