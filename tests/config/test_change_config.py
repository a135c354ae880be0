"""Values are replaced, and what a person wrote beside them stays."""

from __future__ import annotations

from pathlib import Path

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


def test_overrides_reach_deeper_and_take_any_value(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WRITTEN)
    overrides = ["data.train=[a.jsonl,b.jsonl]", "lora.layers.decoder=last:2"]
    (tmp_path / "changed.yaml").write_text(changed_text(path, overrides, {}))
    assert load_config(tmp_path / "changed.yaml") == load_config(path, overrides)
