"""The folders of a run's checkpoints, and where the newest one says that the run was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraft.io.sealed import read_sealed

STEP_FOLDER = re.compile(r"step-(\d{6,})")


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, the newest first, verified or not."""
    found = (path for path in root.glob("step-*") if STEP_FOLDER.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.removeprefix("step-"))


def newest_state(run: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """The newest checkpoint of a run, and the state that it holds: empty where there is none that can be read."""
    newest = next(iter(checkpoints(run / "checkpoints")), None)
    state = None if newest is None else read_sealed(newest / "state.json").get("state")
    return newest, state if isinstance(state, Mapping) else {}
