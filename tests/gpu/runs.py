"""Runs of these tests from a config in a file, as a person begins them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.cli.running import loraft
from tests.training.wide import wide_config

IN_16_BITS = {"model__dtype": "bfloat16"}
METHODS: Mapping[str, dict[str, Any]] = {
    "lora": IN_16_BITS,
    "qlora": {"method": "qlora", "training__optim": "paged_adamw_8bit", **IN_16_BITS},
    "full": {"method": "full", **IN_16_BITS},
}


def written(folder: Path, **options: Any) -> Path:
    """A folder with a model, rows, and the config of a run in `run`: c.yaml."""
    config = wide_config(folder, data__eval=0.2, **options)
    # JSON is YAML.
    (folder / "c.yaml").write_text(config.model_dump_json(exclude_unset=True), encoding="utf-8")
    return folder


def said(place: Path, *words: str) -> Any:
    """What a command says with --json."""
    done = loraft(*words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two files of weights hold the same bits."""
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
