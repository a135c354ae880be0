"""C17: steps that are not finite, and memory that does not suffice: told, nothing lost, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from loraft.training import loop
from loraft.training.train_step import Trainer
from tests.cli.running import Done, loraft
from tests.distributed.starting import STEP, TWO, at_call, done
from tests.distributed.starting import trained as left_by_ranks
from tests.faults.cells import CELLS, IN_CI, RESUME, Cell, Place, contents
from tests.faults.conftest import Trial
from tests.training.building import rows, write_rows
from tests.training.small_memory import room_for
from tests.training.test_non_finite import overflowing

SKIP, TRY = "training.on_nonfinite=skip", "training.try_longest_batch=true"
SOME = CELLS if "LORAFT_TORTURE" in os.environ else [IN_CI[2], IN_CI[4], IN_CI[6], IN_CI[9]]
"""Each method and each task at least once, and 1 and 3 batches a step."""


def failed(done: Done, *words: str) -> str:
    """What was said of a run that failed: once, with these words, and no traceback."""
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert [each for each in words if each not in said] == [], said
    return said


def without_config(run: Path) -> dict[str, object]:
    return {name: of for name, of in contents(run).items() if name != "config.yaml"}


@contextmanager
def out_of_memory_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """No room for a batch of this step."""
    take = loop.take_step

    def take_step(run: Trainer, step: int, *given: Any, **kwargs: Any) -> float:
        with room_for(0 if step == number else 10**6):
            return take(run, step, *given, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "take_step", take_step)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("cell", SOME, ids=lambda cell: cell.name)
def test_c17_what_goes_wrong_in_a_step_is_told_and_the_run_ends_as_if_it_had_not(
    tmp_path: Path, cell: Cell, trial: Trial, torture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, faults = Place(tmp_path, cell), {False: "the loss is inf", True: "the gradient is "}
    for backward in (False, True) if torture else (SOME.index(cell) % 2 == 1,):
        with trial("a step that is not finite: stopped before the update, rows named; `--resume` ends bit-identical"):
            with monkeypatch.context() as patched:
                overflowing(patched, 4, backward=backward)
                failed(loraft(*RESUME, cwd=tmp_path), faults[backward], "at step 4, on the rows rows.jsonl:")
            place.ends_as_the_whole()
        place.run.rename(tmp_path / f"stopped-{backward}")
    with trial("out of memory in a step: what takes it and what frees how much; `--resume` ends bit-identical"):
        with out_of_memory_in_step(monkeypatch, 4):
            failed(loraft(*RESUME, cwd=tmp_path), "GB of a step were predicted (", " frees ", "--resume-anyway")
        place.ends_as_the_whole()


@pytest.mark.slow
@pytest.mark.parametrize("cell", SOME, ids=lambda cell: cell.name)
def test_the_longest_batch_is_tried_first_and_the_run_is_the_one_without(
    tmp_path: Path, cell: Cell, trial: Trial
) -> None:
    place = Place(tmp_path, cell)
    with trial("out of memory: met before step 1, with nothing begun"), room_for(8):
        failed(loraft("train", "c.yaml", TRY, cwd=tmp_path), "as the longest batch was tried before the first step (")
        assert [path.name for path in place.run.iterdir()] == [".lock"]
    with trial("the longest batch tried first: the run ends bit-identical to the one without"):
        ended = loraft("train", "c.yaml", TRY, cwd=tmp_path)
        assert (ended.returncode, "the longest batch (" in ended.stderr) == (0, True), ended.stderr
        assert without_config(place.run) == without_config(place.whole)


@pytest.mark.slow
@pytest.mark.parametrize("cell", SOME[:2] if SOME is not CELLS else CELLS, ids=lambda cell: cell.name)
def test_c17_a_step_that_is_left_out_is_so_in_a_run_that_was_stopped(
    tmp_path: Path, cell: Cell, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.write(tmp_path)
    overflowing(monkeypatch, 2, 3, 6)
    with trial("`on_nonfinite: skip`: left out, counted, rows named; bit-identical after a stop"):
        whole = loraft("train", "c.yaml", SKIP, "--json", cwd=tmp_path)
        assert json.loads(whole.stdout)["skipped_steps"] == 3
        assert whole.stderr.count("warning: the loss is inf at step ") == 3
        assert "rows.jsonl:" in whole.stderr
        (tmp_path / "run").rename(tmp_path / "whole")
        with monkeypatch.context() as patched:
            tell = loop.tell_step

            def stop(run: Trainer, state: Any, clock: Any) -> None:
                tell(run, state, clock)
                if state.step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(loop, "tell_step", stop)
            assert loraft("train", "c.yaml", SKIP, cwd=tmp_path).returncode == 143
        assert loraft(*RESUME, SKIP, cwd=tmp_path).returncode == 0
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_c17_ranks_leave_out_the_same_steps_and_fail_together(tmp_path: Path, trial: Trial) -> None:
    cell = Cell("lora", "causal_lm", 1, streaming=False)
    cell.write(tmp_path)

    def overflow(run: Trainer, *_: object) -> None:
        objective = run.objective

        def once(*given: Any) -> Any:
            run.objective = objective  # type: ignore[method-assign]
            whole, parts = objective(*given)
            return whole * torch.inf, [part * torch.inf for part in parts]

        run.objective = once  # type: ignore[method-assign]

    with trial("`on_nonfinite: skip`: all ranks leave out the step of one"):
        ended = done(tmp_path, "train", "c.yaml", SKIP, *TWO, before=at_call(STEP, 1, 3, overflow))
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("warning: the loss is inf at step 3") == 1
        lines = left_by_ranks(tmp_path / "run")[1]
        assert [line["step"] for line in lines if "reason" in line] == [3]
    with trial("out of memory on one rank before step 1: all fail together with one message"):
        full = at_call("loraft.training.longest_batch:add_gradient", 1, 1, out_of_room)
        failed(done(tmp_path, "train", "c.yaml", TRY, "--overwrite", *TWO, before=full), "(rank 1 of 2)", " frees ")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"] if "LORAFT_TORTURE" in os.environ else ["fsdp2"])
def test_ranks_try_their_longest_batches_and_train_what_they_would(tmp_path: Path, strategy: str, trial: Trial) -> None:
    Cell("lora", "causal_lm", 1, streaming=False).write(tmp_path)
    words = ("train", "c.yaml", f"distributed.strategy={strategy}", "training.max_steps=2", *TWO)
    with trial("the longest batch tried first: the run ends bit-identical to the one without"):
        assert done(tmp_path, *words).returncode == 0
        (tmp_path / "run").rename(tmp_path / "whole")
        ended = done(tmp_path, *words, TRY)
        assert (ended.returncode, ended.stderr.count("the longest batch (")) == (0, 1), ended.stderr
        assert without_config(tmp_path / "run") == without_config(tmp_path / "whole")


def out_of_room(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.slow
def test_c17_on_a_real_model(tmp_path: Path, smollm2: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.jsonl", rows(8))
    (tmp_path / "c.yaml").write_text(
        f"model: {{name_or_path: {smollm2}}}\ndata: {{train: rows.jsonl, eval: 0.25}}\n"
        f"training: {{output_dir: run, max_steps: 2, logging_steps: 1, per_device_train_batch_size: 1}}\n"
    )
    overflowing(monkeypatch, 1)
    with trial("`on_nonfinite: skip` with a real model: left out, counted, rows named"):
        ended = loraft("train", "c.yaml", SKIP, TRY, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert "skipped steps" in ended.stdout
        assert "warning: the loss is inf at step 1, on the rows rows.jsonl:" in ended.stderr
        steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps if "loss" in line] == [2]
