"""Recurrent networks from scratch: token by token through one hidden state, as classifier and as language model.

The state after the last real token decides, whatever padding follows it: in evaluation padding is not even computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from loraft.tasks.batches import BatchLayout
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example

Cell = Literal["lstm", "rnn"]
State = Tensor | tuple[Tensor, Tensor]
"""`[1, rows, hidden]`; of an LSTM two of them, the hidden and the cell state."""
CELLS: dict[Cell, type[nn.LSTM | nn.RNN]] = {"lstm": nn.LSTM, "rnn": nn.RNN}
OTHERS = 0
"""The number that stands for every token which is not known by itself."""


@dataclass(frozen=True)
class RecurrentShape:
    """The sizes of a network; `dropout` is that of embeddings and of what the head reads."""

    cell: Cell
    embedding: int
    hidden: int
    dropout: float


class KnownTokens:
    """The tokens that training rows have at least `least` times, numbered from 1; one number stands for all others.

    What is given to the others together is shared evenly among them, so that the loss is of the whole vocabulary.
    """

    def __init__(self, examples: Sequence[Example], vocabulary: int, *, least: int) -> None:
        """Count the tokens of training rows; `vocabulary` is how many tokens there are at all."""
        counts = Counter(token for example in examples for token in example.input_ids)
        known = sorted(token for token, count in counts.items() if count >= least)
        self.vocabulary = vocabulary
        self.tokens = torch.tensor([-1, *known])
        self._numbers = torch.zeros(vocabulary, dtype=torch.long)
        self._numbers[self.tokens[1:]] = torch.arange(1, len(known) + 1)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def others(self) -> int:
        """How many tokens share the number of the others."""
        return max(1, self.vocabulary - len(self) + 1)

    def numbers(self, tokens: Tensor) -> Tensor:
        """The number of each token."""
        return self._numbers[tokens]


class RecurrentNetwork(nn.Module):
    """An embedding, one recurrent layer, and a linear head on its hidden state."""

    def __init__(self, shape: RecurrentShape, inputs: int, outputs: int) -> None:
        """Begin with random numbers; an LSTM remembers from the start.

        Source: recurrent weights orthogonal, Saxe et al. 2014 (https://arxiv.org/abs/1312.6120); the forget gate's
            bias at one, Jozefowicz et al. 2015, An Empirical Exploration of Recurrent Network Architectures.
        """
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(inputs, shape.embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.cell = CELLS[shape.cell](shape.embedding, shape.hidden, batch_first=True)
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(shape.hidden, outputs)
        with torch.no_grad():
            for name, weight in self.cell.named_parameters():
                if name == "weight_hh_l0":
                    for gate in range(0, len(weight), shape.hidden):
                        nn.init.orthogonal_(weight[gate : gate + shape.hidden])
                elif weight.dim() == 1:
                    weight.zero_()
                    if name == "bias_ih_l0" and shape.cell == "lstm":  # input, forget, candidate, output
                        weight[shape.hidden : 2 * shape.hidden] = 1

    def hidden(self, embedded: Tensor, lengths: Sequence[int]) -> Tensor:
        """The hidden state after each token: `[rows, time, hidden]` of `[rows, time, embedding]`, padded on the right.

        In training padding is read too, which is faster and comes after all that counts; its gradient is zero.
        """
        if self.training:
            whole: Tensor = self.cell(self.dropout(embedded))[0]
            return whole
        states, _ = self.cell(pack_padded_sequence(embedded, torch.tensor(lengths), True, enforce_sorted=False))
        return pad_packed_sequence(states, batch_first=True, total_length=embedded.shape[1])[0]

    def begin(self, numbers: Tensor, lengths: Sequence[int]) -> tuple[Tensor, State]:
        """Read prompts, `[rows, time]`: the logits of the token after the last real one, and the state there."""
        packed = pack_padded_sequence(self.embedding(numbers), torch.tensor(lengths), True, enforce_sorted=False)
        _, state = self.cell(packed)
        return self._said(state), state

    def step(self, numbers: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one more token of each row, `[rows]`: the logits of the next, and the new state."""
        _, state = self.cell(self.embedding(numbers)[:, None], state)
        return self._said(state), state

    def _said(self, state: State) -> Tensor:
        logits: Tensor = self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return logits


@dataclass(frozen=True, eq=False)
class RecurrentModel:
    """A network with what its numbers mean.

    Attributes:
        labels: The classes that it tells; none where it goes on with a text.
    """

    network: RecurrentNetwork
    known: KnownTokens
    task: Task
    labels: tuple[str, ...]
    device: str

    @property
    def cell(self) -> Cell:
        """The kind of its recurrent layer."""
        return self.network.shape.cell

    def embedded(self, examples: Sequence[Example]) -> Tensor:
        """What the network reads of examples: `[rows, time, embedding]`, padded on the right."""
        ids = self.task.collate(examples, BatchLayout()).input_ids
        embedded: Tensor = self.network.embedding(self.known.numbers(ids).to(self.device))
        return embedded

    def losses(self, examples: Sequence[Example], embedded: Tensor) -> tuple[Tensor, Tensor]:
        """`[targets]`, the loss of each in nats, and `[targets, outputs]`, the logits."""
        batch = self.task.collate(examples, BatchLayout())
        lengths = [len(example.input_ids) for example in examples]
        hidden = self.network.hidden(embedded, lengths)
        shared = torch.zeros(())
        if batch.target_positions is None:
            hidden, right = hidden[torch.arange(len(lengths)), torch.tensor(lengths) - 1], batch.labels
        else:
            hidden = hidden.flatten(0, 1)[batch.target_positions.to(self.device)]
            right = self.known.numbers(batch.labels)
            shared = (right == OTHERS) * torch.tensor(self.known.others).log()
        logits = self.network.head(self.network.dropout(hidden))
        found = cross_entropy(logits, right.to(self.device), reduction="none")
        return found + shared.to(self.device), logits


def recurrent_model(
    shape: RecurrentShape, examples: Sequence[Example], task: Task, labels: tuple[str, ...], vocabulary: int,
    *, seed: int, device: str,
) -> RecurrentModel:  # fmt: skip
    """A network that has learned nothing yet, with the tokens of these training rows.

    A text has tokens that no training row has: those that stand there once teach how likely such are. A class may be
    told by a word that stands there once.
    """
    known = KnownTokens(examples, vocabulary, least=1 if labels else 2)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        network = RecurrentNetwork(shape, len(known), len(labels) or len(known))
    return RecurrentModel(network.to(device).eval(), known, task, labels, device)
