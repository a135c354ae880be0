"""Training to a plateau: what is kept, by which rate, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraft.baselines import train_recurrent as training
from loraft.baselines.recurrent import Cell, RecurrentModel
from loraft.baselines.train_recurrent import PATIENCE, RATES, TrainedNetwork, train_recurrent
from loraft.errors import NonFiniteError
from loraft.events import Event, Progress, ignored
from loraft.tokenization.examples import Example
from tests.baselines.test_recurrent import both_cells, classified, classifier

ROWS = classified([[4 + number % 2, 8, 8, 9] for number in range(48)])
"""The first token tells the class, and has to be remembered."""


def trained(cell: Cell = "lstm", observer: Any = ignored) -> TrainedNetwork:
    return train_recurrent(classifier(cell, ROWS), ROWS[16:], ROWS[:16], seed=0, observer=observer)


def accuracy(model: RecurrentModel, rows: list[Example]) -> float:
    _, logits = model.losses(rows, model.embedded(rows))
    return float((logits.argmax(1) == torch.tensor([row.labels[0] for row in rows])).float().mean())


@pytest.mark.slow
@both_cells
def test_it_learns_what_has_to_be_remembered(cell: Cell) -> None:
    found = trained(cell)
    assert accuracy(found.model, ROWS) == 1
    losses, _ = found.model.losses(ROWS[:16], found.model.embedded(ROWS[:16]))
    assert losses.mean().item() == pytest.approx(found.loss, rel=1e-5), "the weights are those of the best round"
    assert [each.learning_rate for each in found.training.tried] == list(RATES[cell])
    assert found.training.learning_rate == min(found.training.tried, key=lambda each: each.loss).learning_rate
    assert found.training.tokens_per_second > 0


def test_training_is_a_function_of_its_seed_and_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MOST_ROUNDS", 3)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = trained(), trained()
    assert all(map(torch.equal, one.model.network.parameters(), other.model.network.parameters()))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.training.rounds, one.training.plateau) == (3, False)
    begun = classifier("lstm", ROWS)
    assert all(map(torch.equal, one.untrained.network.parameters(), begun.network.parameters()))


def test_it_ends_at_a_plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows of the other classes: what is learned makes them worse."""
    monkeypatch.setattr(training, "RATES", {"lstm": (1e-2,)})
    contrary = [Example.of_class(row.input_ids, 1 - row.labels[0], row.where) for row in ROWS[:16]]
    found = train_recurrent(classifier("lstm", ROWS), ROWS, contrary, seed=0, observer=ignored)
    assert found.training.plateau
    assert found.training.rounds == found.training.best_round + PATIENCE


@pytest.mark.slow
def test_it_tells_how_far_it_is() -> None:
    events: list[Event] = []
    found = trained(observer=events.append)
    said = [event for event in events if isinstance(event, Progress)]
    assert [each.what for each in said[:1]] == ["lstm: rate 0.001 tried"]
    assert said[-1].done == found.training.rounds
    assert all(each.done <= each.total for each in said)


@pytest.mark.slow
def test_a_rate_that_diverges_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RATES", {"rnn": (1e30, 1e-2)})
    found = trained("rnn")
    assert (found.training.learning_rate, found.loss < 0.1) == (1e-2, True)


def test_a_loss_that_is_no_number_at_any_rate_ends_it() -> None:
    begun = classifier("rnn", ROWS)
    torch.nn.init.constant_(begun.network.head.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="the loss of the rnn on the held-out rows is not a number"):
        train_recurrent(begun, ROWS[16:], ROWS[:16], seed=0, observer=ignored)
