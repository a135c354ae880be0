"""Recurrent networks: padding never decides, and the numbers are those of the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from loraft.baselines.recurrent import Cell, KnownTokens, RecurrentModel, RecurrentShape, recurrent_model
from loraft.tasks import TASKS
from loraft.tokenization.examples import IGNORED, Example

CLASSES = ("early", "late")
TEXTS = [[5, 6, 7], [5, 9], [7, 5, 6, 9, 5, 6, 7, 9], [6]]
VOCABULARY = 12
both_cells = pytest.mark.parametrize("cell", ["lstm", "rnn"])


def classified(texts: list[list[int]] = TEXTS) -> list[Example]:
    return [Example.of_class(ids, number % 2, f"rows:{number}") for number, ids in enumerate(texts)]


def texts() -> list[Example]:
    return [Example.of_text(ids, [IGNORED, *ids[1:]], f"rows:{number}") for number, ids in enumerate(TEXTS)]


def classifier(cell: Cell, rows: list[Example] | None = None) -> RecurrentModel:
    shape = RecurrentShape(cell, 4, 8, 0.5)
    return recurrent_model(shape, rows or classified(), TASKS["seq_cls"], CLASSES, VOCABULARY, seed=0, device="cpu")


def writer(cell: Cell) -> RecurrentModel:
    shape = RecurrentShape(cell, 4, 8, 0.5)
    return recurrent_model(shape, texts(), TASKS["causal_lm"], (), VOCABULARY, seed=0, device="cpu")


@both_cells
@pytest.mark.parametrize("padding", [1, 7, 130])
def test_c50_padding_never_decides_of_a_class(cell: Cell, padding: int) -> None:
    """The last hidden state is that of the last real token: more padding of whatever numbers changes no bit."""
    model, rows = classifier(cell), classified()
    embedded = model.embedded(rows)
    junk = torch.full((len(rows), padding, embedded.shape[2]), 1e6)
    _, logits = model.losses(rows, embedded)
    _, padded = model.losses(rows, torch.cat([embedded, junk], dim=1))
    assert torch.equal(logits, padded)


@both_cells
def test_c50_a_row_in_a_batch_is_told_as_alone(cell: Cell) -> None:
    """1e-6: products of several rows round otherwise than those of one."""
    model, rows = classifier(cell), classified()
    _, together = model.losses(rows, model.embedded(rows))
    alone = torch.cat([model.losses([row], model.embedded([row]))[1] for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@both_cells
def test_c50_padding_that_is_read_in_training_has_no_gradient(cell: Cell) -> None:
    model, rows = classifier(cell), classified()
    model.network.dropout.p = 0.0
    exact, _ = model.losses(rows, model.embedded(rows))
    model.network.train()
    embedded = model.embedded(rows).detach().requires_grad_()
    faster, _ = model.losses(rows, embedded)
    torch.testing.assert_close(faster, exact, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(faster.sum(), embedded)
    for row, each in zip(rows, gradient, strict=True):
        assert each[: len(row.input_ids)].abs().sum(1).min() > 0
        assert not each[len(row.input_ids) :].any()


def test_an_lstm_has_three_gates_and_a_candidate() -> None:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, computed by hand."""
    model = classifier("lstm")
    cell, ids = model.network.cell, [5, 6]
    hidden, memory = torch.zeros(8), torch.zeros(8)
    for row in model.network.embedding(model.known.numbers(torch.tensor(ids))):
        gates: Tensor = cell.weight_ih_l0 @ row + cell.bias_ih_l0 + cell.weight_hh_l0 @ hidden + cell.bias_hh_l0
        into, forget, candidate, out = gates.split(8)
        memory = forget.sigmoid() * memory + into.sigmoid() * candidate.tanh()
        hidden = out.sigmoid() * memory.tanh()
    rows = classified([ids])
    _, logits = model.losses(rows, model.embedded(rows))
    torch.testing.assert_close(logits[0], model.network.head(hidden))
    assert cell.bias_ih_l0.tolist() == [0] * 8 + [1] * 8 + [0] * 16, "the forget gate is open at first"


def test_a_token_that_stands_once_teaches_how_likely_unknown_ones_are() -> None:
    known = KnownTokens(texts(), VOCABULARY, least=2)
    assert known.tokens.tolist() == [-1, 5, 6, 7, 9]
    assert known.numbers(torch.tensor([5, 9, 0, 11])).tolist() == [1, 4, 0, 0]
    assert known.others == VOCABULARY - 4
    assert len(KnownTokens(texts(), VOCABULARY, least=3)) == 5
    assert len(KnownTokens(texts(), VOCABULARY, least=4)) == 3


@both_cells
def test_the_probabilities_of_the_whole_vocabulary_add_up_to_one(cell: Cell) -> None:
    model = writer(cell)
    rows = [Example.of_text([5, token], [IGNORED, token], "") for token in range(VOCABULARY)]
    losses, logits = model.losses(rows, model.embedded(rows))
    assert losses.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
    unknown = log_softmax(logits[0], 0)[0] - torch.tensor(VOCABULARY - 4.0).log()
    assert losses[0].item() == pytest.approx(-unknown.item())


@both_cells
def test_a_text_goes_on_from_its_state_as_if_it_was_read_anew(cell: Cell) -> None:
    model = writer(cell)
    numbers = model.known.numbers(torch.tensor([[5, 6, 7], [9, 0, 0]]))
    said, state = model.network.begin(numbers, [3, 1])
    alone, _ = model.network.begin(numbers[1:, :1], [1])
    torch.testing.assert_close(said[1:], alone, rtol=0, atol=1e-6)
    said, _ = model.network.step(torch.tensor([4, 2]), state)
    anew, _ = model.network.begin(torch.tensor([[1, 2, 3, 4], [4, 2, 0, 0]]), [4, 2])
    torch.testing.assert_close(said, anew, rtol=0, atol=1e-6)


def test_the_seed_alone_decides_how_it_begins() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = classifier("lstm"), classifier("lstm")
    assert all(map(torch.equal, one.network.parameters(), other.network.parameters()))
    assert torch.equal(torch.get_rng_state(), before)
