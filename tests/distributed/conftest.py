"""A folder with a run that several ranks can train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.starting import TWO, done, trained
from tests.tiny import save_tiny
from tests.training.building import rows, write_rows


def lay_out(folder: Path) -> Path:
    """Put a tiny model, rows and a config, whose ranks wait 4 seconds for one another, into a folder."""
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", rows(24))
    (folder / "c.yaml").write_text(
        "model: {name_or_path: model, dtype: float32}\n"
        "data: {train: train.jsonl, eval: 0.2, max_length: 256}\n"
        "lora: {r: 4, dropout: 0.1}\n"
        "training: {max_steps: 4, logging_steps: 1, eval_steps: 1, save_steps: 1, output_dir: run,\n"
        "  per_device_train_batch_size: 4}\n"
        "distributed: {timeout_seconds: 4}\n"
    )
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run."""
    return lay_out(tmp_path)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, object]]]:
    """What the run ends with that nothing happens to."""
    place = lay_out(tmp_path_factory.mktemp("unbroken"))
    ended = done(place, "train", "c.yaml", *TWO)
    assert ended.returncode == 0, ended.stderr
    return trained(place / "run")
