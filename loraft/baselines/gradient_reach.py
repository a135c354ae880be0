"""How far the gradient of the last token's loss reaches into the past: its norm by distance, in any model.

What is measured is ‖∂L/∂e‖ for the embedding e of each token that was read, where L is the loss of what comes last: the
next token, or the class of the text. The texts are held-out rows end to end, the same for every model. Norms are
geometric means over texts, relative to the token that was read last (distance 1): a gradient that vanishes falls as
a power of the distance, which is a straight line on a logarithmic axis.

Source: Bengio, Simard and Frasconi 1994, Learning Long-Term Dependencies with Gradient Descent is Difficult; Pascanu,
Mikolov and Bengio 2013 (https://arxiv.org/abs/1211.5063).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraft.baselines.recurrent import RecurrentModel
from loraft.dataset.sampler import chunks
from loraft.tasks.batches import BatchLayout
from loraft.tasks.loss import TaskLoss
from loraft.tasks.task import Task
from loraft.tokenization.examples import IGNORED, Example

MOST_DISTANCE = 200
LONGEST_TEXT = 256
"""Longer than the distance: a transformer's first token draws attention whatever it is, and is not measured."""
TEXTS, AT_ONCE = 16, 4
Gradients = Callable[[Sequence[Example]], Tensor]
"""`[texts, time, width]`, of the summed loss of texts of one length by what was read."""


@dataclass(frozen=True)
class GradientReach:
    """A model's gradient by distance.

    Attributes:
        relative: At distance 1, 2, …: the norm by that at distance 1.
        factor: What it is multiplied by with each token, by least squares on its logarithm.
        orders: By how many orders of magnitude it falls over all distances, by that line.
    """

    name: str
    relative: tuple[float, ...]
    factor: float
    orders: float


@dataclass(frozen=True)
class MeasuredTexts:
    """Texts of one length with a loss at their end alone: of the class of each, or of its last token."""

    examples: Sequence[Example]
    classified: bool

    @property
    def length(self) -> int:
        """The tokens that are read of each: what is predicted is not read."""
        return len(self.examples[0].input_ids) - (not self.classified) if self.examples else 0

    @property
    def distances(self) -> int:
        """How far back is measured: not to the first token."""
        return max(0, min(MOST_DISTANCE, self.length - 1))


def texts_to_measure(rows: Sequence[Example], *, classified: bool, context: int | None) -> MeasuredTexts:
    """Rows after those before them, cut on the left.

    The first token of a row stays the first of its text: an encoder may decide by it.
    """
    lasting = list(rows) if classified else [_to_its_end(row) for row in rows]
    starts = [0, *accumulate(len(row.input_ids) for row in rows)]
    longest = min(LONGEST_TEXT, context or LONGEST_TEXT, starts[-2] + len(lasting[-1].input_ids))
    ends = [place for place, row in enumerate(lasting) if starts[place] + len(row.input_ids) >= longest]
    chosen = sorted({ends[at * len(ends) // TEXTS] for at in range(TEXTS)})
    texts = [_joined(rows[:place], lasting[place], longest, classified=classified) for place in chosen]
    return MeasuredTexts(texts, classified)


def _to_its_end(row: Example) -> Example:
    """A row up to the last token that is learned."""
    last = max((place for place, label in enumerate(row.labels) if label != IGNORED), default=len(row.labels) - 1)
    return replace(row, input_ids=row.input_ids[: last + 1], labels=row.labels[: last + 1])


def _joined(before: Sequence[Example], row: Example, length: int, *, classified: bool) -> Example:
    ids = [token for each in (*before, row) for token in each.input_ids][-length:]
    ids[0] = row.input_ids[0]
    if not classified:
        return Example.of_text(ids, [IGNORED] * (length - 1) + ids[-1:], row.where)
    types = None if row.token_type_ids is None else [0] * length
    return Example.of_class(ids, row.labels[0], row.where, types)


def gradient_reach(name: str, texts: MeasuredTexts, gradients: Gradients) -> GradientReach:
    """Measure one model on texts that are long enough for two distances at least."""
    parts = (gradients(part)[:, : texts.length] for part in chunks(texts.examples, AT_ONCE))
    norms = torch.cat([part.double().norm(dim=-1).cpu() for part in parts])
    logs = norms.flip(1)[:, : texts.distances].clamp_min(torch.finfo(torch.float64).tiny).log().mean(0)
    places = torch.arange(len(logs), dtype=torch.float64)
    places -= places.mean()
    slope = (places @ logs) / places.square().sum()
    relative = tuple((logs - logs[0]).exp().tolist())
    return GradientReach(name, relative, float(slope.exp()), float(-slope * (len(logs) - 1)) / math.log(10))


def of_recurrent(model: RecurrentModel) -> Gradients:
    """The gradients of a recurrent network, in float64, which holds what vanishes."""
    double = replace(model, network=copy.deepcopy(model.network).double().eval())

    def gradients(texts: Sequence[Example]) -> Tensor:
        with torch.enable_grad():
            embedded = double.embedded(texts).detach().requires_grad_()
            loss = double.losses(texts, embedded)[0].sum()
            return torch.autograd.grad(loss, embedded)[0]

    return gradients


def of_transformer(model: PreTrainedModel, loss: TaskLoss, task: Task, device: str) -> Gradients:
    """The gradients of a transformer, by the embeddings of its tokens."""

    def gradients(texts: Sequence[Example]) -> Tensor:
        batch = task.collate(texts, BatchLayout()).to(device)
        with torch.enable_grad(), _embeddings_of(model) as seen:
            total = loss(batch)
            return torch.autograd.grad(total, seen[0])[0]

    return gradients


@contextmanager
def _embeddings_of(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the embedding of tokens gives, as a leaf that gradients are taken by."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, given: Tensor) -> Tensor:
        seen.append(given.detach().requires_grad_())
        return seen[-1]

    table: nn.Module = model.get_input_embeddings()
    with table.register_forward_hook(keep):
        yield seen
