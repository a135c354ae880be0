"""Files of other tools: whose they are, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.errors import ConfigError
from loraft.peers.foreign_file import read_foreign_file
from tests.peers.translating import STARTS
from tests.words import Wording


@pytest.mark.parametrize("peer", ["axolotl", "llama-factory", "trl"])
def test_a_file_is_recognised_by_its_keys(tmp_path: Path, peer: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(STARTS[peer])
    assert read_foreign_file(path).peer == peer
    assert read_foreign_file(path, "axolotl").peer == "axolotl"


def test_values_are_read_as_these_tools_read_them(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("base_model: a/b\nsequence_len: 4_096\nbf16: yes\ndatasets: [{path: off}]\n")
    values = {name: key.value for name, key in read_foreign_file(path).keys.items()}
    assert values == {"base_model": "a/b", "sequence_len": 4096, "bf16": True, "datasets": [{"path": False}]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent.yaml", None),
        ("empty.yaml", "\n"),
        ("list.yaml", "- a\n"),
        ("broken.yaml", "base_model: [a\n"),
        ("anchored.yaml", "base_model: &a b\n"),
        ("ours.yaml", "model: {name_or_path: a/b}\ndata: {train: x.jsonl}\n"),
        ("nobodys.yaml", "learning_rate: 1\n"),
        ("words.txt", "hello there\n"),
        ("fsdp.yaml", "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\n"),
        ("zero3.json", '{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}'),
    ],
)
def test_what_is_no_file_of_theirs_is_told(tmp_path: Path, name: str, text: str | None, wording: Wording) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_foreign_file(path)
    wording(str(refused.value))
