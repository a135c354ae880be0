"""The batches that a start from the rows reads: those of the first epoch, each with tokens enough for its ranks."""

from __future__ import annotations

from loraft.adapters.computed_starts import begin_from_data
from loraft.adapters.inject import AdaptedModel
from loraft.dataset.sampler import BatchSampler
from loraft.errors import AdapterError
from loraft.tasks.loss import Batch, TaskLoss
from loraft.training.run_plan import RunPlan

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
    found, rows, enough = list[Batch](), list[int](), 0
    train, batches = plan.data.train, plan.batches
    assert isinstance(batches, BatchSampler), "the config refuses it of rows that are read as they come"
    for batch in batches.epoch(0):
        rows += batch
        if (learned := sum(train[row].trained for row in rows)) >= least:
            found.append(plan.task.collate([train[row] for row in rows], plan.layout).to(plan.placement.device))
            rows, enough = [], enough + learned
        if enough >= MOST_TOKENS:
            break
    if not found:
        message = f"eva begins with {least} directions of what is learned, and the rows have fewer tokens than that"
        raise AdapterError(message, key="lora.init", remedy="Take a lower lora.r, more rows, or another lora.init.")
    return found
