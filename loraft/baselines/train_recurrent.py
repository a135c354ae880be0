"""A recurrent network trained to a plateau: a few rates tried, the best kept, and the weights of its best round.

A round is an epoch, or `ROUND_STEPS` steps where an epoch has more. The rate is halved where the loss on the held-out
rows does not fall any more. These rows choose the rate and the end, which flatters the network a little.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor, nn

from loraft.baselines.recurrent import OTHERS, Cell, RecurrentModel, RecurrentShape
from loraft.dataset.sampler import chunks
from loraft.errors import NonFiniteError
from loraft.events import Observer, Progress
from loraft.tokenization.examples import Example

RATES: dict[Cell, tuple[float, ...]] = {"lstm": (1e-3, 3e-3, 1e-2), "rnn": (3e-4, 1e-3, 3e-3)}
SHAPES = {True: (128, 128, 0.5), False: (128, 256, 0.2)}
"""The sizes of a classifier and of what writes: embedding, hidden state, dropout."""
FORGOTTEN = 0.05
"""The share of a classified text's tokens that are read as unknown in training, so that unknown ones are known."""
ROWS_A_STEP, ROUND_STEPS, TRIED_ROUNDS, MOST_ROUNDS = 16, 400, 4, 80
HALVED_AFTER, PATIENCE = 3, 7
"""Rounds without a better loss until the rate is halved, and until training ends."""
LARGEST_NORM = 1.0
"""Gradients of recurrent networks explode too: they are clipped to this norm."""


@dataclass(frozen=True)
class TriedRate:
    """A learning rate, and the best loss on the held-out rows after a few rounds with it."""

    learning_rate: float
    loss: float


@dataclass(frozen=True)
class RecurrentTraining:
    """How a network was trained.

    Attributes:
        tried: The rates, of which the best was taken.
        rounds: How many there were.
        best_round: The round, from 1, whose weights it has.
        plateau: It ended since the loss fell no more; otherwise at the most rounds.
        tokens_per_second: Tokens read in training, by its steps alone.
    """

    cell: Cell
    embedding: int
    hidden: int
    dropout: float
    known_tokens: int
    tried: tuple[TriedRate, ...]
    learning_rate: float
    rounds: int
    best_round: int
    plateau: bool
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network after training, and as it began; `loss` is that of the held-out rows."""

    model: RecurrentModel
    untrained: RecurrentModel
    training: RecurrentTraining
    loss: float


def shape_of(cell: Cell, *, classifies: bool) -> RecurrentShape:
    """The sizes of a network of this cell."""
    return RecurrentShape(cell, *SHAPES[classifies])


def train_recurrent(
    untrained: RecurrentModel, train: Sequence[Example], held_out: Sequence[Example], *, seed: int, observer: Observer
) -> TrainedNetwork:
    """Train a network on rows until its loss on the held-out rows falls no more.

    Raises:
        NonFiniteError: No rate gives a loss that is a number.
    """
    begun, tried = perf_counter(), []
    rates, cell = RATES[untrained.cell], untrained.cell
    for place, rate in enumerate(rates):
        told = _told(observer, f"{cell}: rate {rate:g} tried", place * TRIED_ROUNDS, len(rates) * TRIED_ROUNDS)
        course = _Course(untrained, rate, seed)
        course.run(train, held_out, TRIED_ROUNDS, told)
        tried.append(TriedRate(rate, course.best_loss))
    if not any(math.isfinite(each.loss) for each in tried):
        raise NonFiniteError(f"the loss of the {cell} on the held-out rows is not a number, at whatever rate")
    best = min(tried, key=lambda each: each.loss).learning_rate
    course = _Course(untrained, best, seed)
    course.run(train, held_out, MOST_ROUNDS, _told(observer, f"{cell}: rounds at most", 0, MOST_ROUNDS))
    course.model.network.load_state_dict(course.best_weights)
    training = RecurrentTraining(
        **vars(untrained.network.shape),
        known_tokens=len(untrained.known) - 1,
        tried=tuple(tried),
        learning_rate=best,
        rounds=course.round,
        best_round=course.best_round,
        plateau=course.is_over,
        tokens_per_second=course.tokens / course.seconds,
        seconds=perf_counter() - begun,
    )
    return TrainedNetwork(course.model, untrained, training, course.best_loss)


def _told(observer: Observer, what: str, start: int, total: int) -> Callable[[int], None]:
    return lambda done: observer(Progress(what, start + done, total))


class _Course:
    """One training: the weights, the optimizer, and where it stands."""

    def __init__(self, untrained: RecurrentModel, rate: float, seed: int) -> None:
        network = copy.deepcopy(untrained.network)
        self.model = replace(untrained, network=network)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        self._seed, self._generator = seed, torch.Generator().manual_seed(seed)
        self.round = self.best_round = self.tokens = 0
        self.best_loss, self.seconds = float("inf"), 0.0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Whether the loss has not fallen for long enough."""
        return self.round - self.best_round >= PATIENCE

    def run(
        self, train: Sequence[Example], held_out: Sequence[Example], rounds: int, told: Callable[[int], None]
    ) -> None:
        """Train for `rounds` at most."""
        batches = self._batches(train)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self._seed)
            steps = min(ROUND_STEPS, -(-len(train) // ROWS_A_STEP))
            while self.round < rounds and not self.is_over:
                self._learn(list(islice(batches, steps)))
                self._judge(held_out)
                told(self.round)

    def _batches(self, train: Sequence[Example]) -> Iterator[list[Example]]:
        """Epoch after epoch; rows of like length share a batch."""
        while True:
            order = torch.randperm(len(train), generator=self._generator).tolist()
            pools = (sorted(pool, key=lambda i: len(train[i].input_ids)) for pool in chunks(order, 8 * ROWS_A_STEP))
            batches = [batch for pool in pools for batch in chunks(pool, ROWS_A_STEP)]
            for place in torch.randperm(len(batches), generator=self._generator).tolist():
                yield [train[index] for index in batches[place]]

    def _learn(self, batches: Sequence[Sequence[Example]]) -> None:
        network, began = self.model.network.train(), perf_counter()
        for rows in batches:
            embedded = self._forgetful(self.model.embedded(rows))
            loss = self.model.losses(rows, embedded)[0].mean()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), LARGEST_NORM)
            self._optimizer.step()
            self.tokens += sum(len(row.input_ids) for row in rows)
        if self.model.device != "cpu":
            torch.cuda.synchronize()
        self.seconds += perf_counter() - began
        network.eval()

    def _forgetful(self, embedded: Tensor) -> Tensor:
        """The tokens that a classifier reads, some as if they were unknown."""
        if not self.model.labels:
            return embedded
        forgotten = torch.rand(embedded.shape[:2]).to(embedded.device) < FORGOTTEN
        return torch.where(forgotten[..., None], self.model.network.embedding.weight[OTHERS], embedded)

    @torch.no_grad()
    def _judge(self, held_out: Sequence[Example]) -> None:
        self.round += 1
        total, count = 0.0, 0
        for rows in chunks(sorted(held_out, key=lambda row: len(row.input_ids)), 4 * ROWS_A_STEP):
            losses, _ = self.model.losses(rows, self.model.embedded(rows))
            total, count = total + float(losses.sum()), count + len(losses)
        loss = total / max(1, count)
        if loss < self.best_loss:  # what is not a number is no better
            self.best_loss, self.best_round = loss, self.round
            self.best_weights = copy.deepcopy(self.model.network.state_dict())
        elif (self.round - self.best_round) % HALVED_AFTER == 0:
            for group in self._optimizer.param_groups:
                group["lr"] /= 2
