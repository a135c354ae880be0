"""The best checkpoint is never rotated away, and old ones go only after the new one is whole on the disk."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraft.io.checkpoint_folders import checkpoints
from loraft.training import checkpoint, loop, save_run
from loraft.training.checkpoint import checkpoint_fault
from loraft.training.train_step import evaluate_loss
from tests.cli.running import loraft
from tests.faults.conftest import Trial
from tests.faults.harm import contents_of, halve
from tests.faults.work import result_of, said, work_in

pytestmark = pytest.mark.slow
STEPS = 12
BEST = "evaluations and save limits at random: the best checkpoint and the newest stay, old ones go last"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work_in(tmp_path_factory.mktemp("work"))


def drawn_losses(drawn: random.Random) -> Callable[..., Any]:
    """`evaluate_loss`, whose losses are drawn; some are equal."""

    def evaluate(*args: Any, **named: Any) -> Any:
        found = evaluate_loss(*args, **named)
        return found and found._replace(loss=drawn.choice((1.0, 2.0, 3.0, 3 * drawn.random())))

    return evaluate


def removes_behind_a_whole_one(root: Path) -> Callable[..., None]:
    """`shutil.rmtree`, which removes a checkpoint of `root` only where the newest verifies."""
    remove = shutil.rmtree

    def checked(path: Any, *args: Any, **named: Any) -> None:
        if Path(path) in checkpoints(root):
            assert checkpoint_fault(checkpoints(root)[0]) is None
        remove(path, *args, **named)

    return checked


def kept(root: Path) -> set[int]:
    """The steps of the checkpoints that are there."""
    return {int(folder.name.removeprefix("step-")) for folder in checkpoints(root)}


def improvements(run: Path) -> list[int]:
    """The steps whose evaluation was better than any one before."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    return [step for step in losses if all(losses[step] < losses[other] for other in losses if other < step)]


@pytest.mark.parametrize("part", range(4))
def test_the_best_and_the_newest_stay(
    work: Path, monkeypatch: pytest.MonkeyPatch, part: int, trial: Trial, torture: bool
) -> None:
    run = work / "run"
    for number in range(part, 200 if torture else 8, 4):
        drawn = random.Random(number)
        limit, each, evaluated = drawn.choice((1, 2, 3)), drawn.choice((1, 2, 5)), drawn.choice((1, 2, 3))
        words = (
            f"training.save_total_limit={limit}", f"training.save_steps={each}", f"training.eval_steps={evaluated}",
            f"training.max_steps={STEPS}", "training.output_dir=run",
        )  # fmt: skip
        with trial(BEST), monkeypatch.context() as patched:
            patched.setattr(loop, "evaluate_loss", drawn_losses(drawn))
            patched.setattr(shutil, "rmtree", removes_behind_a_whole_one(run / "checkpoints"))
            done = loraft("train", "c.yaml", "--overwrite", *words, cwd=work)
            assert done.returncode == 0, done.stderr
            better = improvements(run)
            saved = sorted({*range(each, STEPS + 1, each), STEPS, *better})
            assert kept(run / "checkpoints") == {*saved[-limit:], better[-1]}, number
            assert all(checkpoint_fault(folder) is None for folder in checkpoints(run / "checkpoints"))


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "adapter/adapter_model.safetensors"])
def test_what_a_disk_lost_in_writing_removes_no_older_checkpoint(
    work: Path, monkeypatch: pytest.MonkeyPatch, name: str, trial: Trial
) -> None:
    """A disk of a network may say that it wrote what is cut short, once the new checkpoint has its name."""
    written = checkpoint.save_checkpoint

    def loses(root: Path, step: int, *args: Any, **named: Any) -> Path:
        folder = written(root, step, *args, **named)
        if step >= 4:
            halve(folder / name)
        return folder

    with trial(BEST):
        monkeypatch.setattr(save_run, "save_checkpoint", loses)
        words = ("training.output_dir=run", "training.save_total_limit=1")
        done = loraft("train", "c.yaml", "--overwrite", *words, cwd=work)
        assert done.returncode == 0, done.stderr
        assert "checkpoint step-000004 is damaged" in said(done)
        assert "older ones are kept" in said(done)
        assert kept(work / "run/checkpoints") == {2, 4, 6}
        monkeypatch.undo()
        resumed = loraft("train", "c.yaml", "--resume", *words, cwd=work)
        assert "going on from step-000002" in said(resumed)
        assert contents_of(result_of(work / "run")) == contents_of(result_of(work / "whole"))
