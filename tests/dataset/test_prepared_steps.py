"""The next step made ready while one runs: the same steps in the same order, and errors where they would be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from loraft.dataset.prepared_steps import PreparedStep, PreparedSteps
from loraft.dataset.sampler import StepBatches
from loraft.errors import DataError
from loraft.kernels.transfer import to_device
from loraft.training.loop import fit
from tests.training.building import tiny_config, tiny_fit


def laid(window: StepBatches) -> PreparedStep:
    return PreparedStep(window, [], (), 0, 1.0, 0, 0, seconds=3.0)


def windows(count: int, drawn: list[int]) -> Iterator[StepBatches]:
    for number in range(count):
        drawn.append(number)
        yield StepBatches([], ends_epoch=number == count - 1, place=(number, 0))
    raise DataError("a bad row")


def test_a_step_that_was_made_ready_is_given_next_and_its_time_counted_once() -> None:
    drawn: list[int] = []
    steps = PreparedSteps(windows(3, drawn), laid)
    assert (next(steps).window.place, drawn) == ((0, 0), [0])
    steps.make_ready()
    assert drawn == [0, 1]
    ready = next(steps)
    assert (ready.window.place, ready.seconds, drawn) == ((1, 0), 0.0, [0, 1])
    assert next(steps).seconds == 3.0


def test_what_goes_wrong_ahead_is_told_when_it_is_asked_for() -> None:
    steps = PreparedSteps(windows(1, []), laid)
    next(steps)
    steps.make_ready()  # says nothing: the step before it is still going on
    with pytest.raises(DataError, match="a bad row"):
        next(steps)


def test_the_end_comes_after_the_last_step() -> None:
    steps = PreparedSteps(iter([StepBatches([], ends_epoch=True)]), laid)
    next(steps)
    steps.make_ready()
    assert list(steps) == []


@pytest.mark.slow
def test_a_run_whose_steps_are_made_ready_ahead_learns_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU has it: two micro-batches a step, two epochs and a bit."""
    options = {"training__max_steps": 5, "training__gradient_accumulation_steps": 2, "lora__dropout": 0.1}
    learned = []
    for ahead in (False, True):
        run, state = tiny_fit(tiny_config(tmp_path, training__output_dir=str(tmp_path / f"{ahead}"), **options))
        torch.manual_seed(0)
        if ahead:
            monkeypatch.setattr("loraft.training.loop.has_own_memory", lambda _: True)
        fit(run, state)
        learned.append(({name: tensor.clone() for name, tensor in run.adapted.trainable.items()}, state))
    (ours, ours_state), (theirs, theirs_state) = learned
    assert ours_state == theirs_state
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_tensor_for_the_cpu_is_left_where_it_is() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, "cpu") is tensor


@pytest.mark.parametrize("told", [True, False])
def test_of_several_ranks_one_tells_at_once_what_it_meets_by_itself(told: bool) -> None:
    """The others wait for it already, in what they agree on of the step."""
    error = MemoryError()
    error.told_by_main = told  # type: ignore[attr-defined]

    def lay(_: StepBatches) -> PreparedStep:
        raise error

    steps = PreparedSteps(windows(2, []), lay, alone=False)
    if told:
        steps.make_ready()
    with pytest.raises(MemoryError):
        _ = next(steps) if told else steps.make_ready()
