"""A tiny run that went well, through the command line, to be damaged or run short of room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraft.config.config_file import dump_config
from tests.cli.running import Done, loraft
from tests.training.building import tiny_config

ANSWER = ("--prompt", "the order", "--max-new-tokens", "3", "--temperature", "0")


def said(done: Done) -> str:
    """What was told, in one line; never a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join(done.stderr.split())


def work_in(folder: Path, **changes: Any) -> Path:
    """A folder with a config, a model and rows, and a run of six steps with three checkpoints and an adapter."""
    config = tiny_config(folder, **{"training__save_steps": 2, "training__eval_steps": 2, "data__eval": 0.2, **changes})
    (folder / "c.yaml").write_text(dump_config(config))
    done = loraft("train", "c.yaml", "training.output_dir=whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def result_of(run: Path) -> Path:
    """The adapter of a run, or its model."""
    return next(run / name for name in ("adapter", "model") if (run / name).is_dir())
