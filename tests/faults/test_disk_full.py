"""C31: a disk that fills up at any point leaves what was there, says so with the bytes, and ends with exit code 3."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraft.io.checkpoint_folders import checkpoints
from loraft.io.paths import CONVERSION
from loraft.training.checkpoint import checkpoint_fault
from tests.cli.running import Done, loraft
from tests.faults.conftest import Trial
from tests.faults.harm import contents_of
from tests.faults.small_disk import PAGE, ROOM, SmallDisk, files_of_at_most, small_disk
from tests.faults.work import ANSWER, result_of, said, work_in
from tests.models.gguf_files import write_tiny_gguf
from tests.training.building import write_rows

pytestmark = pytest.mark.slow
TRAINING = "a disk that is full while training or saving: what was there is intact, and goes on bit-identical"
OTHERS = "a disk that is full while a command writes: what was there is intact; path, bytes needed and free are told"
TOLD = re.compile(r"bytes are free|bytes are needed|more is needed")
ROWS = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had room, and a file of rows to answer."""
    folder = work_in(tmp_path_factory.mktemp("work"))
    rows = [{"prompt": f"the order {number}"} for number in range(ROWS)]
    write_rows(folder / "asked.jsonl", rows)
    write_rows(folder / "answered.jsonl", [{**row, "completion": "late"} for row in rows])
    return folder


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture
def disk(mounted: SmallDisk) -> Iterator[SmallDisk]:
    """An empty disk with room."""
    mounted.empty()
    yield mounted
    mounted.leave(ROOM)


def full(done: Done, place: Path) -> str:
    """What was told of a disk that is full: where, how much is needed and how much is free."""
    told = said(done)
    assert done.returncode == 3, told
    assert str(place) in told
    assert len(set(TOLD.findall(told))) == 2, told
    return told


def whole_so_far(run: Path) -> None:
    """Nothing half-written is there: each checkpoint verifies, and of unfinished ones nothing is left."""
    assert all(checkpoint_fault(folder) is None for folder in checkpoints(run / "checkpoints"))
    assert [path.name for path in run.rglob(".*") if path.name != ".lock"] == []


def goes_on(work: Path, run: Path) -> None:
    """With room again the run ends as the one that always had it."""
    done = loraft("train", "c.yaml", f"training.output_dir={run}", "--resume", cwd=work)
    assert done.returncode == 0, done.stderr
    assert contents_of(result_of(run)) == contents_of(result_of(work / "whole"))


@pytest.mark.parametrize("point", range(20))
def test_c31_a_disk_that_fills_up_while_training(
    work: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, point: int, trial: Trial, torture: bool
) -> None:
    run = disk.folder / "run"
    taken = sum(-len(held) // PAGE * -PAGE for held in contents_of(work / "whole").values())
    for part in range(10 if torture else 1):
        with trial(TRAINING), monkeypatch.context() as patched:
            disk.empty()
            disk.fill_after(patched, "loraft.api.runs.check_disk", int(taken * (point + part / 10) / 20))
            done = loraft("train", "c.yaml", f"training.output_dir={run}", cwd=work)
            if done.returncode == 0:  # only the page that tells of the run had no room
                assert f"{run}/report.html was not written" in said(done)
            else:
                full(done, run)
            whole_so_far(run)
            patched.undo()
            disk.leave(ROOM)
            goes_on(work, run)


@pytest.mark.parametrize("limit", [6_000, 20_000, 30_000, 50_000])
def test_c31_a_file_that_may_not_grow(work: Path, tmp_path: Path, limit: int, trial: Trial) -> None:
    """Tokenizer, adapter and optimizer are of other sizes: each is met, in Python and in Rust, without a mount."""
    run = tmp_path / "run"
    with trial(TRAINING):
        with files_of_at_most(limit):
            done = loraft("train", "c.yaml", f"training.output_dir={run}", cwd=work)
        assert "ulimit -f" in full(done, run)
        whole_so_far(run)
        goes_on(work, run)


def test_c31_what_will_not_fit_is_refused_before_the_first_step(work: Path, disk: SmallDisk, trial: Trial) -> None:
    run = disk.folder / "run"
    for free in (0, 20_000_000, 40_000_000):
        with trial("less room than save_total_limit checkpoints need: refused before the first step, nothing is made"):
            disk.empty()
            disk.leave(free)
            done = loraft("train", "c.yaml", f"training.output_dir={run}", cwd=work)
            assert done.returncode == 2
            assert "training.save_total_limit" in said(done)
            assert "are free on the disk" in said(done)
            assert not run.exists()
            checked = loraft("check", "c.yaml", f"training.output_dir={run}", cwd=work)
            assert checked.returncode == 2, "check says the same"


WRITERS = {
    "merge": (("merge", "whole", "DISK/out", "--overwrite"), "loraft.merging.write_weights.require_free_bytes"),
    "export": (("export", "whole", "DISK/out.gguf", "--overwrite"), "loraft.exporting.write_gguf.require_free_bytes"),
    "report": (
        ("report", "whole", "--quick", "--output", "DISK/out.html"),
        "loraft.reporting.report_run.check_report_file",
    ),
}
"""Commands that write a file or a folder anew, and what is looked at before the disk fills up."""


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.98])
@pytest.mark.parametrize("command", WRITERS)
def test_c31_what_is_written_anew_leaves_what_was_there(
    work: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, command: str, share: float, trial: Trial
) -> None:
    words, check = WRITERS[command]
    words = tuple(word.replace("DISK", str(disk.folder)) for word in words)
    with trial(OTHERS):
        assert loraft(*words, cwd=work).returncode == 0
        before = disk.files
        with monkeypatch.context() as patched:
            disk.fill_after(patched, check, int((disk.used - PAGE) * share))
            done = loraft(*words, cwd=work)
        full(done, disk.folder / "out")
        assert disk.files == before


@pytest.mark.parametrize("free", [0, PAGE])
def test_c31_answers_so_far_are_whole_and_gone_on_with(work: Path, disk: SmallDisk, free: int, trial: Trial) -> None:
    words = ("generate", "whole", "--input", "asked.jsonl", *ANSWER[2:], "--output")
    if not (work / "answers.jsonl").exists():
        assert loraft(*words, "answers.jsonl", cwd=work).returncode == 0
    with trial(OTHERS):
        output = disk.folder / "out.jsonl"
        disk.leave(free)
        told = full(loraft(*words, str(output), cwd=work), output)
        assert "the same command goes on." in told.lower()
        held = output.read_bytes()
        assert held.endswith(b"\n") or not held
        disk.leave(ROOM)
        assert loraft(*words, str(output), cwd=work).returncode == 0
        assert output.read_bytes() == (work / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("free", [0, PAGE])
def test_c31_rows_that_were_evaluated_are_whole(work: Path, disk: SmallDisk, free: int, trial: Trial) -> None:
    with trial(OTHERS):
        output = disk.folder / "out.jsonl"
        disk.leave(free)
        words = ("evaluate", "whole", "--data", "answered.jsonl", "--max-new-tokens", "3", "--output", str(output))
        full(loraft(*words, cwd=work), output)
        for line in output.read_text().splitlines():
            assert json.loads(line)["prompt"].startswith("the order")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_c31_a_model_that_is_converted_is_in_the_cache_whole_or_not_at_all(
    work: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, share: float, trial: Trial
) -> None:
    monkeypatch.setenv("LORAFT_CACHE", str(disk.folder))
    write_tiny_gguf(work / "tiny.gguf")
    words = ("check", "c.yaml", "model.name_or_path=tiny.gguf", "model.tokenizer=model", "training.output_dir=none")
    with trial(OTHERS):
        with monkeypatch.context() as patched:
            disk.fill_after(patched, "loraft.models.gguf_import.require_free_bytes", int(200_000 * share))
            full(loraft(*words, cwd=work), disk.folder)
        assert disk.files == {}
        disk.leave(ROOM)
        assert loraft(*words, cwd=work).returncode == 0
        assert any(name.startswith(CONVERSION) for name in disk.files)


def test_c31_tokens_that_cannot_be_kept_cost_only_time(
    work: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, trial: Trial
) -> None:
    monkeypatch.setenv("LORAFT_CACHE", str(disk.folder))
    for free in (0, PAGE):
        with trial("a disk that is full while tokens are kept: told, and the command goes on"):
            disk.empty()
            disk.leave(free)
            done = loraft("check", "c.yaml", "training.output_dir=none", cwd=work)
            assert done.returncode == 0
            assert "the tokens could not be kept for the next start: " in said(done)
            assert "No space left on device" in said(done)
            assert disk.files == {}
