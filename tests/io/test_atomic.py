"""A folder is whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from loraft.errors import DiskFullError, RunFolderError
from loraft.io.atomic import atomic_dir, atomic_file


def test_a_folder_is_there_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with atomic_dir(tmp_path / "deep/folder") as staging:
            (staging / "file").write_text(text)
    assert (tmp_path / "deep/folder/file").read_text() == "second"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


def test_after_an_error_the_old_folder_is_as_it_was(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "folder") as staging:
        (staging / "file").write_text("old")
    writing = atomic_dir(tmp_path / "folder")
    (writing.__enter__() / "file").write_text("new")
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (tmp_path / "folder/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_kill_between_the_renames_is_mended_by_the_next_writing(tmp_path: Path) -> None:
    (tmp_path / ".folder.previous").mkdir()
    (tmp_path / ".folder.previous/file").write_text("old")
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "folder"):
        raise RuntimeError
    assert (tmp_path / "folder/file").read_text() == "old"


@pytest.mark.parametrize("holds", [True, False], ids=["a folder", "nothing"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path, holds: bool) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    if holds:
        target.mkdir()
        (target / "kept").write_text("old")
    folder.symlink_to(target)
    for text in ("one", "two"):
        with atomic_dir(folder) as staging:
            (staging / "file").write_text(text)
        assert (folder / "file").read_text() == text
    assert not folder.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == ({"folder", "target"} if holds else {"folder"})
    if holds:
        assert [path.name for path in target.iterdir()] == ["kept"]


def test_a_full_disk_is_told_with_what_is_free(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="bytes are free"), atomic_dir(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_is_writing_is_not_taken_from_it(tmp_path: Path) -> None:
    """It holds a lock on it; what nobody holds was left by a process that was killed, and goes."""
    folder, file = tmp_path / ".folder.partial-1", tmp_path / ".file.partial-1"
    folder.mkdir()
    file.touch()
    for held, writing in ((folder, atomic_dir), (file, atomic_file)):
        wanted = tmp_path / held.name.removeprefix(".").partition(".")[0]
        descriptor = os.open(held, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="another process is writing it"), writing(wanted):
            raise AssertionError("it is written")
        assert sorted(tmp_path.glob(".*")) == sorted(path for path in (folder, file) if path.exists())
        assert held.exists()
        assert not wanted.exists()
        os.close(descriptor)
        with writing(wanted) as beside:
            (beside / "file" if beside.is_dir() else beside).write_text("new")
        assert not held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("mine")
    with pytest.raises(NotADirectoryError), atomic_dir(tmp_path / "folder"):
        raise AssertionError("it is written")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
