"""Every type through everything that loraft does with a model, each compared with transformers and peft alone."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from loraft import api
from tests.tiny import mostly_slow
from tests.zoo.cells import CELLS, Tried, failures, path_of
from tests.zoo.models import ALL, MOST_USED, QUICK
from tests.zoo.not_alone import NOT_ALONE, NOT_READ_BACK, trained_alone
from tests.zoo.not_yet import NOT_YET, PLAIN

SOON_DONE = ("check", "loss", "adapter", "peft", "generate")
"""What is tried of the quick subset without `--slow`: resuming and merging take as long again."""


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is not waited for: no test here ends in a lost machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize(("group", "model_type"), mostly_slow([each for each in ALL if trained_alone(*each)], *QUICK))
def test_every_type_in_every_cell(tmp_path: Path, group: str, model_type: str, pytestconfig: pytest.Config) -> None:
    """A cell that begins to work fails here too: then its reason in `not_yet.py` goes."""
    every = CELLS if pytestconfig.getoption("--slow") else SOON_DONE
    cells = tuple(cell for cell in every if cell != NOT_ALONE.get((group, model_type), ("",))[0])
    failed = tried(tmp_path, group, model_type, cells)
    assert set(failed) == set(NOT_YET.get((group, model_type), {})), failed
    if "check" not in failed:
        assert (path_of(tmp_path / "model", group) == "plain") == ((group, model_type) in PLAIN)


def tried(folder: Path, group: str, model_type: str, cells: tuple[str, ...]) -> dict[str, str]:
    """What fails of the cells, with what was said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of their own models
        return dict(failures(Tried(model_type, group, folder), cells))


@pytest.mark.slow
@pytest.mark.parametrize(("group", "model_type"), [each for each, said in NOT_ALONE.items() if NOT_READ_BACK in said])
def test_loraft_reads_back_the_adapters_that_peft_does_not(tmp_path: Path, group: str, model_type: str) -> None:
    assert not tried(tmp_path, group, model_type, ("check", "loss", "adapter", "resume"))
    assert (path_of(tmp_path / "model", group) == "plain") == ((group, model_type) in PLAIN)
    api.merge(str(tmp_path / "run"), tmp_path / "merged", positions=16)


def test_of_those_that_transformers_and_peft_train_all_but_three_in_a_hundred_are_trained() -> None:
    trained = [each for each in ALL if trained_alone(*each)]
    whole = [each for each in trained if each not in NOT_YET]
    assert len(whole) >= 0.97 * len(trained)
    assert not set(MOST_USED) & set(NOT_YET)
    assert set(NOT_YET) <= set(trained)
