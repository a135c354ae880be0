"""Values are replaced, and what a person wrote beside them stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraft.config.change_config import changed_text
from loraft.config.config_file import load_config

WRITTEN = """\
# my run
method: full   # all weights
model: {name_or_path: "some/model"}
data:
  train: rows.jsonl
  eval: null
training:
  max_steps: 20   # enough
"""


def test_comments_order_and_quotes_stay(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WRITTEN)
    changes = {"method": "lora", "training.per_device_train_batch_size": 2, "training.gradient_checkpointing": True}
    text = changed_text(path, ["training.max_steps=7", "lora.r=4"], changes)
    expected = WRITTEN.replace("method: full", "method: lora").replace("max_steps: 20", "max_steps: 7 ")
    assert text == (expected + "  per_device_train_batch_size: 2\n  gradient_checkpointing: true\nlora:\n  r: 4\n"), (
        text
    )
    changed = tmp_path / "changed.yaml"
    changed.write_text(text)
    overrides = ["method=lora", "training.max_steps=7", "training.per_device_train_batch_size=2", "lora.r=4"]
    assert load_config(changed) == load_config(path, [*overrides, "training.gradient_checkpointing=true"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train=[a.jsonl,b.jsonl]", "lora.layers.decoder=last:2"],
        ["data.train=-"],  # standard input, and no list of nothing
        ["lora.rank_pattern.layers.0.q_proj=8"],  # one name of a free mapping, dots and all
        ["training.run_name=1_000"],
        ["training.run_name=0b11"],
        ["training.run_name=2026-01-01"],
        ["training.run_name=<<"],
        ["training.output_dir=null", "seed=0x1F"],
        ["training={max_steps: 1}", "training.logging_steps=5", "training={save_steps: 2}"],
    ],
)
def test_overrides_are_written_as_a_config_takes_them(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WRITTEN)
    (tmp_path / "changed.yaml").write_text(changed_text(path, overrides, {}))
    assert load_config(tmp_path / "changed.yaml") == load_config(path, overrides)
