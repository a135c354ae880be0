"""C29: runs of every kind, killed while they train, save and evaluate, end as the run that was never killed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.cells import CELLS, IN_CI, Cell, Place, in_an_evaluation, inside_a_save, while_training
from tests.faults.conftest import Trial

WHERE = {while_training: "while training", inside_a_save: "inside a save", in_an_evaluation: "in an evaluation"}
KILLED = CELLS if "LORAFT_TORTURE" in os.environ else [IN_CI[at] for at in (1, 2, 3, 6, 8, 9, 10, 12)]
"""Without `scripts/torture`: every task, every method, and each way that a step and its rows can be."""
KILLS = [inside_a_save, while_training, inside_a_save, in_an_evaluation]
"""Those of one run before it ends."""


@pytest.mark.slow
@pytest.mark.parametrize("cell", KILLED, ids=lambda cell: cell.name)
def test_c29_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(
    tmp_path: Path, cell: Cell, trial: Trial, torture: bool
) -> None:
    """Each start after a kill is one command, `loraft train c.yaml --resume`."""
    place = Place(tmp_path, cell)
    with ExitStack() as tried:
        for aim in KILLS * (3 if torture else 1):
            tried.enter_context(trial(f"kill -9 {WHERE[aim]}: `--resume` ends bit-identical"))
            place.ended_by(aim)
        place.ends_as_the_whole()
