"""A folder with a run that several ranks can train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny
from tests.training.building import rows, write_rows


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a tiny model, rows and a config, whose ranks wait 6 seconds for one another."""
    save_tiny(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", rows(24))
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.2, max_length: 256}\n"
        "lora: {r: 4, dropout: 0.1}\n"
        "training: {max_steps: 4, logging_steps: 1, per_device_train_batch_size: 4, output_dir: run}\n"
        "distributed: {timeout_seconds: 6}\n"
    )
    return tmp_path
