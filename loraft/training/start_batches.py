"""The batches that a start from the rows reads: those of the first epoch, each with tokens enough for its ranks."""

from __future__ import annotations

from loraft.adapters.computed_starts import begin_from_data
from loraft.dataset.sampler import BatchSampler
from loraft.errors import AdapterError
from loraft.tasks.loss import Batch
from loraft.training.train_step import Trainer

MOST_TOKENS = 1 << 16
"""Directions hardly turn after so many tokens that are learned."""


def begin_from_rows(run: Trainer) -> None:
    """Begin the adapter of a run from its rows, where `lora.init` says so.

    Raises:
        AdapterError: There are too few tokens, or what modules read has no such directions.
    """
    targets = run.adapted.targets
    if run.plan.config.lora.init == "eva" and targets is not None:
        begin_from_data(run.adapted.model, _batches(run, max(targets.ranks.values())), run.loss)


def _batches(run: Trainer, least: int) -> list[Batch]:
    found, rows, enough = list[Batch](), list[int](), 0
    train, batches = run.plan.data.train, run.plan.batches
    assert isinstance(batches, BatchSampler), "the config refuses it of rows that are read as they come"
    for batch in batches.epoch(0):
        rows += batch
        if (learned := sum(train[row].trained for row in rows)) >= least:
            found.append(run.batch([train[row] for row in rows]))
            rows, enough = [], enough + learned
        if enough >= MOST_TOKENS:
            break
    if not found:
        message = f"eva begins with {least} directions of what is learned, and the rows have fewer tokens than that"
        raise AdapterError(message, key="lora.init", remedy="Take a lower lora.r, more rows, or another lora.init.")
    return found
