"""The batches that a start from the rows reads: those of the first epoch, each with tokens enough for its ranks."""

from __future__ import annotations

from dataclasses import replace

from torch.nn.functional import pad

from loraft.adapters.computed_starts import begin_from_data, learned_from, require_tokens
from loraft.adapters.inject import AdaptedModel
from loraft.dataset.streaming import StreamingSampler
from loraft.planning.run_plan import RunPlan
from loraft.tasks.batches import Batch
from loraft.tasks.loss import TaskLoss
from loraft.tokenization.examples import IGNORED, Example

MOST_TOKENS = 1 << 16
"""Directions hardly turn after so many tokens that are learned."""


def begin_from_rows(plan: RunPlan, adapted: AdaptedModel, loss: TaskLoss) -> None:
    """Begin the adapter of a run from its rows, where `lora.init` says so; `loss` runs the model.

    Raises:
        AdapterError: There are too few tokens, or what modules read has no such directions.
    """
    targets = adapted.targets
    if plan.config.lora.init == "eva" and targets is not None:
        begin_from_data(adapted.model, _batches(plan, max(targets.ranks.values())), loss)


def _batches(plan: RunPlan, least: int) -> list[Batch]:
    found, rows, enough, drawn = list[Batch](), list[Example](), 0, plan.batches
    if isinstance(drawn, StreamingSampler):
        drawn = drawn.read_aside()
    for batch in (batch for window in drawn.windows(plan.data.train, 0, 0, (0, 0)) for batch in window.batches):
        rows += batch
        if (learned := sum(map(learned_from, rows))) >= least:
            found.append(_told_apart(plan.task.collate(rows, plan.layout)).to(plan.placement.device))
            rows, enough = [], enough + learned
        if enough >= MOST_TOKENS:
            break
    if not found:  # of a stream nothing was known before
        require_tokens(least, rows)
    return found


def _told_apart(batch: Batch) -> Batch:
    """The batch with targets of another length than its sources: by that a module is told which of the two it reads."""
    if batch.labels.shape != batch.input_ids.shape:
        return batch
    labels = pad(batch.labels, (0, 1), value=IGNORED)
    return replace(batch, labels=labels, target_positions=(labels.flatten() != IGNORED).nonzero().squeeze(1))
