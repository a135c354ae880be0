"""Which folders are checkpoints, and where the newest one says that its run was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraft.io.checkpoint_folders import checkpoints, newest_state
from loraft.io.sealed import sealed


def test_the_newest_is_that_of_the_last_step_and_nothing_else_counts(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000002", ".step-2000000.partial", "step-7", "step-0000003x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3000000").touch()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-1000000", "step-999999", "step-000002"]
    assert checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", [None, "{", '{"state": 3}', '{"state": {"step": 8}, "sealed": "of another"}'])
def test_the_state_of_the_newest_is_empty_where_it_cannot_be_read(tmp_path: Path, damage: str | None) -> None:
    assert newest_state(tmp_path) == (None, {})
    for step in (4, 8):
        folder = tmp_path / f"checkpoints/step-{step:06}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(sealed({"state": {"step": step}})))
    newest = tmp_path / "checkpoints/step-000008"
    if damage is not None:
        (newest / "state.json").write_text(damage)
    assert newest_state(tmp_path) == (newest, {"step": 8} if damage is None else {})
