"""A folder of the cache is complete or absent: two processes at once, one killed half-way, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loraft.errors import DiskFullError, ModelError
from loraft.io.checksums import build_once, remade

BUILDER = """
import os, sys, time
from pathlib import Path
from loraft.cli.runner import interruptible
from loraft.io.checksums import build_once

target, log, hangs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "hangs"

def build(folder):
    (folder / "first").write_text("first")
    with log.open("a") as stream:
        stream.write("built\\n")
    print("half-way", flush=True)
    if hangs:
        time.sleep(600)
    (folder / "second").write_text("second")

with interruptible():  # as every command is
    print(sorted(os.listdir(build_once(target, build))))
"""


def start(target: Path, log: Path, *, hangs: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(target), str(log), "hangs" if hangs else "goes on"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    )


def test_two_processes_at_once_build_one_folder(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "model", tmp_path / "log"
    processes = [start(target, log) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(line.endswith("['first', 'second']\n") for line in said)
    assert log.read_text() == "built\n"


def test_a_process_killed_half_way_leaves_nothing_that_counts(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    killed = start(target, log, hangs=True)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half-way\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=60)
    killed.stdout.close()
    assert not target.exists()
    assert len(list(tmp_path.glob(".model.*"))) == 1
    assert build_once(target, lambda folder: (folder / "file").touch()) == target
    assert [path.name for path in target.iterdir()] == ["file"]
    assert not list(tmp_path.glob(".model.*"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "file").touch()
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        build_once(tmp_path / "model", fails)
    assert {path.name for path in tmp_path.iterdir()} <= {"model.lock"}


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    def unwanted(_: Path) -> None:
        raise AssertionError

    assert build_once(tmp_path, unwanted) == tmp_path


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cache cannot be written") as caught:
        build_once(tmp_path / "file" / "model", lambda _: None)
    assert "LORAFT_CACHE" in str(caught.value)


def test_a_disk_that_fills_up_meanwhile_is_a_failure_not_a_refusal(tmp_path: Path) -> None:
    def fills(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError):
        build_once(tmp_path / "model", fills)


@pytest.mark.parametrize("harm", ["missing", "emptied", "one bit"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_a_damaged_folder_is_made_anew_and_it_is_said(tmp_path: Path, name: str, harm: str, cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "first").write_text("first")
        (folder / "second").write_text("second")

    target = build_once(tmp_path / "model", build)
    assert remade() == ()
    if harm == "missing":
        (target / name).unlink()
    else:
        (target / name).write_bytes(b"" if harm == "emptied" else bytes([name.encode()[0] ^ 1]) + name[1:].encode())
    assert build_once(target, build) == target
    assert {path.name: path.read_text() for path in target.iterdir()} == {"first": "first", "second": "second"}
    (said,) = remade()
    assert said.startswith(f"the cached model model was damaged ({name} ")
    assert remade() == ()


def test_a_manifest_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    target = build_once(tmp_path / "model", lambda folder: (folder / "file").touch())
    (tmp_path / "model.manifest.json").write_text("{")
    build_once(target, lambda folder: (folder / "other").touch())
    assert [path.name for path in target.iterdir()] == ["other"]
    assert len(remade()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_is_stopped_half_way_leaves_nothing(tmp_path: Path, number: int) -> None:
    target = tmp_path / "model"
    stopped = start(target, tmp_path / "log", hangs=True)
    assert stopped.stdout is not None
    assert stopped.stdout.readline() == "half-way\n"
    os.kill(stopped.pid, number)
    assert stopped.wait(timeout=60) != 0
    stopped.stdout.close()
    assert {path.name for path in tmp_path.iterdir()} <= {"log", "model.lock"}
