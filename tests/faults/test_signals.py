"""C32: whenever a signal comes, what was trained is saved, three lines say so at most, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.cells import (
    CELLS,
    IN_CI,
    STOPPED,
    Aim,
    Cell,
    Place,
    before_evaluated_row,
    exit_code,
    in_an_evaluation,
    inside_a_save,
    twice_in_a_step,
    while_training,
)
from tests.faults.conftest import Trial
from tests.faults.fault_points import signalled_at

TRIED = CELLS if "LORAFT_TORTURE" in os.environ else IN_CI[8::4]
STOPS: list[tuple[Aim, int, int]] = [
    (while_training, signal.SIGTERM, 143),
    (in_an_evaluation, signal.SIGINT, 130),
    (inside_a_save, signal.SIGTERM, 143),
    (while_training, signal.SIGINT, 130),
]


@pytest.mark.slow
@pytest.mark.parametrize("cell", TRIED, ids=lambda cell: cell.name)
def test_c32_a_run_that_is_stopped_again_and_again_ends_as_one_that_never_was(
    tmp_path: Path, cell: Cell, trial: Trial
) -> None:
    place = Place(tmp_path, cell)
    with ExitStack() as tried:
        for aim, number, code in STOPS:
            name = signal.Signals(number).name
            tried.enter_context(trial(f"{name}: saved within a step, {code}, three lines; resumed bit-identical"))
            place.ended_by(aim, number, code)
            assert place.begun_after <= 1
            *_, progress, last = place.said().partition(STOPPED)
            assert progress
            assert last.count("\n") <= 3
            assert "loraft train run/config.yaml --resume" in last
            assert (place.run / f"checkpoints/step-{int(last.split()[0]):06d}").is_dir()
        place.ends_as_the_whole()


@pytest.mark.slow
def test_c32_a_run_that_is_stopped_in_its_last_evaluation_makes_up_for_it(tmp_path: Path, trial: Trial) -> None:
    """That evaluation is not the best one, after which a checkpoint would be saved anyway."""
    place = Place(tmp_path, next(cell for cell in CELLS if cell.name == "seq_cls-full-1"))
    with trial("SIGTERM: saved within a step, 143, three lines; resumed bit-identical"):
        assert before_evaluated_row(place, signal.SIGTERM, 10) == 143
        assert "stopped at step 7 of 7" in place.said()
        place.ends_as_the_whole()


@pytest.mark.slow
def test_c32_a_run_that_is_stopped_while_its_result_is_saved_tells_how_to_go_on(tmp_path: Path, trial: Trial) -> None:
    place = Place(tmp_path, CELLS[0])
    saved = signalled_at(place.run, 1, lambda path: str(path).startswith(".adapter"), signal.SIGTERM)
    with trial("SIGTERM: saved within a step, 143, three lines; resumed bit-identical"):
        assert exit_code(place.started(saved)) == 143
        assert "stopped at step 7 of 7; everything is saved" in place.said()
        assert not (place.run / "adapter").exists()
        place.ends_as_the_whole()


@pytest.mark.slow
@pytest.mark.parametrize("cell", TRIED, ids=lambda cell: cell.name)
def test_c32_a_second_signal_ends_a_run_at_once_and_sigusr1_ends_none(
    tmp_path: Path, cell: Cell, trial: Trial, torture: bool
) -> None:
    place = Place(tmp_path, cell)
    for aim in (while_training, inside_a_save, in_an_evaluation) if torture else (while_training,):
        with trial("SIGUSR1: saved, the run goes on and ends bit-identical"):
            assert aim(place, signal.SIGUSR1) == 0
            place.is_as_the_whole()
        shutil.rmtree(place.run)
    for number in (signal.SIGTERM, signal.SIGINT):
        with trial("a second signal: ends the run at once; resumed bit-identical"):
            assert twice_in_a_step(place, number) == -number
    place.ends_as_the_whole()
