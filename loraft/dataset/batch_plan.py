"""Which rows of a run share a batch, and whether they lie end to end, as its config says."""

from __future__ import annotations

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData
from loraft.dataset.sampler import BatchSampler
from loraft.tasks import TASKS


def uses_packing(config: RunConfig, *, packs: bool) -> bool:
    """Whether the rows of a batch lie end to end, without padding.

    Args:
        config: The run.
        packs: The model's family can be laid so.
    """
    wanted = config.data.packing != "off" and config.model.attn_implementation == "auto"
    return packs and wanted and TASKS[config.task].packs


def fills(config: RunConfig) -> bool:
    """Whether rows are filled up to `data.max_length` with one another."""
    return config.data.packing == "fill" and TASKS[config.task].packs


def batch_sampler(config: RunConfig, data: PreparedData) -> BatchSampler:
    """The batches of a run."""
    return BatchSampler(
        lengths=[example.tokens for example in data.train],
        spans=data.train_sources,
        batch_size=config.training.per_device_train_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
        seed=config.seed,
        group_by_length=config.training.group_by_length,
        fill_to=config.data.max_length if fills(config) else None,
    )
