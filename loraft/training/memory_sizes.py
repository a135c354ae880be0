"""The sizes that decide how much memory a run needs, from its plan's parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData
from loraft.dataset.sampler import BatchSampler
from loraft.kernels.cross_entropy import targets_in_chunk
from loraft.models.device import DeviceConfig
from loraft.tasks import TASKS
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example
from loraft.training.memory import StackSizes, TrainingSizes
from loraft.training.model_summary import ModelSummary


def training_sizes(
    config: RunConfig,
    placement: DeviceConfig,
    shape: ModelSummary,
    data: PreparedData,
    batches: BatchSampler,
    *,
    packed: bool,
) -> TrainingSizes:
    """The sizes of a run whose largest batch is that of its first epoch."""
    lengths = batches.lengths
    largest = max(batches.epoch(0), key=lambda rows: _cells([lengths[i] for i in rows], packed=packed))
    rows = [data.train[i] for i in largest]
    lora = shape.targets is not None
    return TrainingSizes(
        frozen_parameters=shape.total_parameters - shape.quantized_parameters if lora else 0,
        quantized_parameters=shape.quantized_parameters,
        trainable_parameters=shape.trainable_parameters,
        dtype_bytes=torch.empty(0, dtype=placement.dtype).element_size(),
        stacks=tuple(
            _stack(TASKS[config.task], stack, shape, rows, data.train, packed=packed) for stack in shape.depths
        ),
        batch_targets=sum(example.trained for example in rows),
        chunk_targets=targets_in_chunk(shape.vocabulary),
        vocabulary=_choices(data, shape),
        whole_model=not lora,
    )


def _choices(data: PreparedData, shape: ModelSummary) -> int:
    """How many things a target is one of: classes, or the entries of the vocabulary."""
    return len(data.renderer.labels) or shape.vocabulary


def _stack(
    task: Task, stack: str, shape: ModelSummary, rows: Sequence[Example], every: Sequence[Example], *, packed: bool
) -> StackSizes:
    """What one stack reads of the largest batch."""
    read = [task.read_by(stack, example) for example in rows]
    return StackSizes(
        layer=shape.layers[stack],
        graph_layers=shape.graph_layers(stack),
        batch_tokens=_cells(read, packed=packed),
        longest_row=max(task.read_by(stack, example) for example in every),
    )


def _cells(lengths: Sequence[int], *, packed: bool) -> int:
    return sum(lengths) if packed else max(lengths) * len(lengths)
