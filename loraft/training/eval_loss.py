"""What an evaluation during training measures: the loss of the held-out rows, and how often a classifier is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from loraft.figures import label_figures
from loraft.tasks.batch import BatchLayout
from loraft.tasks.loss import TaskLoss
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example

NO_FIGURES: Mapping[str, float] = MappingProxyType({})


class EvalLoss(NamedTuple):
    """What was measured.

    Attributes:
        loss: The summed loss over what it is divided by: the trained tokens, or the weights of the rows' classes.
        targets: The number of trained tokens, or of rows.
        figures: `accuracy` and `macro_f1` of a classifier; none of other models.
        not_finite: The first batch of rows whose loss is not finite, where the reading ended; none is the rule.
    """

    loss: float
    targets: int
    figures: Mapping[str, float]
    not_finite: Sequence[Example] = ()


def evaluate_loss(
    loss: TaskLoss,
    task: Task,
    examples: Sequence[Example],
    layout: BatchLayout,
    batch_size: int,
    device: str,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> EvalLoss | None:
    """Read the examples once; the model is used in the mode it is in. None when `stop` asked for the end."""
    total, weight, targets = 0.0, 0.0, 0
    cells: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(examples), batch_size):
            if stop():
                return None
            rows = examples[start : start + batch_size]
            batch = task.collate(rows, layout).to(device)
            summed, decisions = loss.with_decisions(batch)
            total += summed.item()
            cells += [] if decisions is None else [decisions.cpu()]
            if not math.isfinite(total):
                return EvalLoss(total, targets, NO_FIGURES, rows)
            weight += loss.weight(batch)
            targets += batch.targets
    return EvalLoss(total / weight, targets, class_figures(*torch.cat(cells, 1)) if cells else NO_FIGURES)


def class_figures(right: Tensor, given: Tensor) -> Mapping[str, float]:
    """`accuracy` and `macro_f1` of rows whose classes are `right` and who were given `given`: `[rows]` each."""
    classes = int(torch.stack([right, given]).max()) + 1
    counted = (torch.bincount(each, minlength=classes).numpy() for each in (right, given, right[right == given]))
    return label_figures(*counted)
