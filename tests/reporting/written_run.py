"""Runs as their files tell of them, without any training: losses and settings as a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraft.config.config_file import dump_config
from loraft.config.schema import RunConfig
from loraft.reporting.model_findings import FigureBeside, Forgetting, ModelFindings
from loraft.reporting.run_records import RunRecords, read_records

FALLING = [3.0 - 0.1 * step for step in range(20)]
FLAT = [2.0] * 20
OF_PAIRS = {"accuracy": 0.75, "margin": 1.5, "chosen_reward": 0.5, "rejected_reward": -1.0}
"""What a run of preferences measures besides its loss."""


def write_run(
    folder: Path,
    losses: Sequence[float] = FLAT,
    evaluations: Mapping[int, float] | None = None,
    *,
    norm: float = 0.5,
    finished: bool = True,
    held_out: bool = True,
    figures: Mapping[str, float] | None = None,
    **training: Any,
) -> Path:
    """The folder of a run that logged each step, and evaluated after some of them; 10 steps are an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model": {"name_or_path": "some/model"},
        "data": {"train": "train.jsonl", "eval": 0.1 if held_out else None},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 2, **training},
    }
    if figures:
        config |= {"task": "preference" if "margin" in figures else "seq_cls"}
    (folder / "config.yaml").write_text(dump_config(RunConfig.model_validate(config)))
    lines: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, start=1):
        lines.append(
            {
                "step": step, "epoch": step / 10, "loss": loss, "grad_norm": norm, "learning_rate": 1e-3 / step,
                "tokens": 10 * step, "tokens_per_second": 100.0, "peak_bytes": 2_000_000_000,
            }
        )  # fmt: skip
        if evaluations and step in evaluations:
            measured = {f"eval_{name}": value for name, value in (figures or {"perplexity": 2.0}).items()}
            lines.append({"step": step, "epoch": step / 10, "eval_loss": evaluations[step], **measured})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "base": {"name": "some/model"},
        "hardware": {"device": "a device"},
        "ranks": 2,
        "planned": {"steps": 30, "peak_bytes": 1_500_000_000},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if finished:
        (folder / "adapter").mkdir(exist_ok=True)
    return folder


def records_of(folder: Path, *given: Any, **settings: Any) -> RunRecords:
    """What the files of such a run say."""
    return read_records(write_run(folder, *given, **settings))


def findings_with(
    loss: tuple[float, float] | None = None, general: tuple[float, float] = (2.0, 2.0), **given: Any
) -> ModelFindings:
    """What a model tells whose loss differs from the base's by an interval, and whose general text has these losses."""
    figures = {} if loss is None else {"loss": FigureBeside(2.0, 2.0 + sum(loss) / 2, sum(loss) / 2, *loss)}
    values: dict[str, Any] = {
        "rows": "the run's held-out rows", "rows_read": 20, "base": "base", "figures": figures, "answers": (),
        "forgotten": Forgetting(*general, 500), "hard_held_out": (), "hard_learned": (), "learned_read": 10,
        "learned_rows": 20, "moved": (), "notes": (),
    }  # fmt: skip
    return ModelFindings(**{**values, **given})
