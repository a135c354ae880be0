"""Checkpoints: whole, or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from loraft.errors import DiskFullError, NonFiniteError
from loraft.io.checkpoint_folders import checkpoints
from loraft.training import checkpoint
from loraft.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    prune,
    remove_partial,
    save_checkpoint,
)

FILES = ("weights/adapter.bin", "optimizer.safetensors", "rng.safetensors", "state.json")


def save(root: Path, step: int) -> Path:
    def write(folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "adapter.bin").write_bytes(bytes(range(200)))

    return save_checkpoint(
        root, step, write, {"step": step}, ({"0.exp_avg": torch.full((3,), float(step))}, {"0.step": step})
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 7))
    assert loaded.state == {"step": 7}
    assert loaded.optimizer.read("0.exp_avg").tolist() == [7.0, 7.0, 7.0]
    assert loaded.optimizer_numbers == {"0.step": 7}
    assert torch.equal(loaded.rng["cpu"], torch.get_rng_state())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_c30_a_damaged_file_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str, kind: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    DAMAGE[kind](bad / name)
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest == good
    assert len(damaged) == 1
    assert "step-000002" in damaged[0]


def test_what_a_kill_leaves_behind_is_no_checkpoint_and_in_nobodys_way(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    (tmp_path / ".step-000002.partial").mkdir()
    (tmp_path / ".step-000002.partial" / "state.json").write_text("{")
    assert newest_checkpoint(tmp_path) == (good, [])
    assert save(tmp_path, 2).name == "step-000002"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000001", "step-000002"]


def test_a_step_saved_twice_is_the_second(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, lambda _: None, {"step": 3, "again": True}, ({}, {}))
    assert load_checkpoint(tmp_path / "step-000003").state["again"] is True


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 1_000_000):
        save(tmp_path, step)
    prune(tmp_path, step=1_000_000, keep=2, best_step=20)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000", "step-000040", "step-000020"]
    prune(tmp_path, step=1_000_000, keep=None, best_step=None)
    assert len(checkpoints(tmp_path)) == 3


def test_of_a_checkpoint_that_was_moved_and_linked_to_the_link_is_removed(tmp_path: Path) -> None:
    """To another disk, perhaps: what lies there is whoever's who put it there."""
    root = tmp_path / "checkpoints"
    for step in (1, 2):
        save(root, step)
    (root / "step-000001").rename(tmp_path / "far")
    (root / "step-000001").symlink_to(tmp_path / "far")
    prune(root, step=2, keep=1, best_step=None)
    assert [path.name for path in root.iterdir()] == ["step-000002"]
    assert newest_checkpoint(root)[0] == root / "step-000002"
    assert (tmp_path / "far/state.json").is_file()


def test_a_later_checkpoint_that_was_passed_over_takes_no_place_of_a_good_one(tmp_path: Path) -> None:
    (save(tmp_path, 7) / "state.json").unlink()
    save(tmp_path, 4)  # a run that went on from a step before 7
    prune(tmp_path, step=4, keep=1, best_step=None)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-000004"


def test_what_a_kill_left_unfinished_is_cleared_up(tmp_path: Path) -> None:
    """A kill between the two renames of a checkpoint that is saved twice leaves the first beside."""
    save(tmp_path, 3).rename(tmp_path / ".step-000003.previous")
    for name in (".step-000003.partial", ".step-000002.previous", ".step-000005.partial"):
        (tmp_path / name).mkdir()
    save(tmp_path, 2)
    remove_partial(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-000003", [])


FULL = {
    "the system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.parametrize("said_by", FULL)
def test_c31_a_full_disk_is_said_and_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    good = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise FULL[said_by]

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskFullError, match=r"about [\d,]+ bytes are needed, and [\d,]+ bytes are free") as told:
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert "are whole" in (told.value.problems[0].remedy or "")
    shutil.rmtree(good)
    with pytest.raises(DiskFullError) as told:
        save(tmp_path, 2)
    assert "begins anew" in (told.value.problems[0].remedy or "")


def test_weights_that_cannot_be_saved_leave_nothing_behind(tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise NonFiniteError("2 tensors hold NaN")

    with pytest.raises(NonFiniteError):
        save_checkpoint(tmp_path, 1, refuse, {}, ({}, {}))
    assert not list(tmp_path.iterdir())


def test_c34_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {oct((folder / name).stat().st_mode & 0o777) for name in FILES} == {"0o640"}
