"""What a run lives in goes wrong: its disk, its folder, the clock. It says so, and nothing that was saved is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import loraft, started
from tests.faults.cells import IN_CI, Place, exit_code, is_saved
from tests.faults.conftest import Trial
from tests.faults.fault_points import before_each_change, signalled_at

TEN_YEARS = 10 * 365 * 86_400
REFUSALS = {
    errno.ENOSPC: "a full inode table",
    errno.EROFS: "a disk that has become read-only",
    errno.EACCES: "a folder that may not be written",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with a run that was trained to its end."""
    return Place(tmp_path_factory.mktemp("place"), IN_CI[0])


@pytest.fixture
def place(trained: Place) -> Place:
    """The same with no other run in it."""
    shutil.rmtree(trained.run, ignore_errors=True)
    trained.run.unlink(missing_ok=True)
    return trained


def refusing(root: Path, number: int, first: int) -> Callable[[], None]:
    """For a fork: from some change of the files in `root` on nothing new can be made there."""
    left = [first]

    def reached(_: Path, operation: str) -> None:
        left[0] -= 1
        if left[0] <= 0 and operation in ("open", "os.mkdir"):
            raise OSError(number, os.strerror(number), str(root))

    return lambda: before_each_change(root, reached)


@pytest.mark.slow
@pytest.mark.parametrize("number", REFUSALS)
def test_what_the_disk_refuses_is_told_and_the_run_goes_on_later(
    place: Place, number: int, trial: Trial, torture: bool
) -> None:
    draw = random.Random(number)
    for _ in range(20 if torture else 2):
        with trial(f"{REFUSALS[number]}: told, exit code 2 or 3; resumed bit-identical"):
            first = refusing(place.run, number, draw.randrange(1, 300))
            assert exit_code(place.started(first)) in (2, 3), place.said()
            said = place.said()
            assert "Traceback" not in said
            assert "error: " in said
            place.ends_as_the_whole()
        shutil.rmtree(place.run)


IN_THE_WAY: list[tuple[str, str]] = [
    (".", "file"), ("checkpoints", "file"), ("adapter", "file"), ("metrics.jsonl", "folder"), ("config.yaml", "folder"),
    ("manifest.json", "folder"), (".lock", "folder"), ("checkpoints/step-000007", "file"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), IN_THE_WAY)
def test_what_stands_in_the_way_is_named_and_stays(place: Place, name: str, kind: str, trial: Trial) -> None:
    """Of the run's folder too: a file is there where a folder should be, or the other way round."""
    assert exit_code(place.started(signalled_at(place.run, 200, is_saved))) == -signal.SIGKILL
    found = place.run / name
    if found.is_dir():
        shutil.rmtree(found)
    else:
        found.unlink(missing_ok=True)
    if kind == "file":
        found.write_text("mine")
    else:
        found.mkdir()
        (found / "mine").write_text("mine")
    with trial("a file where a folder should be, or a folder where a file: named, exit code 2 or 3, and it stays"):
        done = loraft("train", "c.yaml", "--resume", cwd=place.folder)
        assert done.returncode in (2, 3), done.stderr
        assert "Traceback" not in done.stderr
        assert name in done.stderr
        assert (found if kind == "file" else found / "mine").read_text() == "mine"


@pytest.mark.slow
def test_a_folder_that_vanishes_is_told_and_the_run_can_begin_anew(place: Place, trial: Trial, torture: bool) -> None:
    def vanishing(count: int) -> Callable[[], None]:
        left = [count]

        def reached(*_: object) -> None:
            left[0] -= 1
            if left[0] == 0:
                shutil.rmtree(place.run)

        return lambda: before_each_change(place.run, reached)

    draw = random.Random(0)
    for _ in range(20 if torture else 3):
        with trial("the run's folder vanishes: told, exit code 3; begun anew it ends bit-identical"):
            code = exit_code(place.started(vanishing(draw.randrange(20, 300))))
            assert code == 3
            assert "Traceback" not in place.said()
            shutil.rmtree(place.run, ignore_errors=True)
            place.ends_as_the_whole()
        shutil.rmtree(place.run)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS])
def test_a_clock_that_jumps_changes_nothing(place: Place, jump: int, trial: Trial) -> None:
    now = time.time

    def first() -> None:
        calls = [0]

        def jumping() -> float:
            calls[0] += 1
            return now() + jump * (calls[0] % 2)

        time.time = jumping

    with trial("a clock that jumps by ten years, on or back: the run ends bit-identical"):
        assert exit_code(started("train", "c.yaml", cwd=place.folder, first=first)) == 0, place.said()
        place.is_as_the_whole()
