"""The memory of a planned run: the sizes it is predicted from, what is computed again to save some, and if it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from loraft.config.choices import Checkpointing
from loraft.dataset.sampler import BatchSampler
from loraft.kernels.cross_entropy import targets_in_chunk
from loraft.kernels.packed_attention import STEP
from loraft.kernels.tiled_mlp import TILE
from loraft.kernels.transfer import has_own_memory
from loraft.models.device import main_memory
from loraft.models.hf_config import noise_of
from loraft.models.quantize import quantized_bytes
from loraft.optimization.optimizer import KINDS
from loraft.planning.base_weights import StackSizes
from loraft.planning.known_run import KnownRun
from loraft.planning.memory import MemoryPlan, TrainingSizes, predict
from loraft.tasks.batches import BatchLayout
from loraft.tokenization.examples import Example

ROOM = 0.9
"""Gradient checkpointing is turned on where a run without it is predicted to need more than this of the memory."""
Held = Callable[[MemoryPlan], MemoryPlan]
"""From what a step holds to what each rank holds of it."""


class Saving(NamedTuple):
    """What is computed again to save memory; `splits`: there are batches of more tokens than a tile."""

    gradient_checkpointing: Checkpointing
    tiled_mlp: bool
    splits: bool

    @property
    def settings(self) -> dict[str, Checkpointing]:
        """The keys of `training` with what was decided."""
        return {"gradient_checkpointing": self.gradient_checkpointing, "tiled_mlp": self.tiled_mlp}


def plan_memory(
    known: KnownRun, batches: BatchSampler, layout: BatchLayout, *, held: Held = lambda one: one
) -> tuple[MemoryPlan, Saving]:
    """Predict the peak of one that is `held` so, and decide what is computed again: layers, then parts in tiles."""
    sizes, training = _training_sizes(known, batches, layout), known.config.training
    layers, tiles = training.gradient_checkpointing, training.tiled_mlp
    tiled = replace(sizes, stacks=tuple(replace(stack, tile=TILE) for stack in sizes.stacks))
    splits = any(stack.in_tiles for stack in tiled.stacks)
    again: tuple[Checkpointing, ...] = (False, True) if layers == "auto" else (layers,)
    choices = [Saving(each, tiles is True, splits) for each in again]
    if tiles == "auto" and splits:
        choices.append(Saving(again[-1], True, splits))
    for saving in choices:
        plan = held(predict(tiled if saving.tiled_mlp else sizes, checkpointing=saving.gradient_checkpointing))
        if plan.peak_bytes <= ROOM * known.placement.available_bytes:
            break
    return plan, saving


def too_large(known: KnownRun, memory: MemoryPlan) -> str | None:
    """Why a run does not fit; None where it does."""
    placement, there = known.placement, known.placement.available_bytes
    paged = memory.optimizer if KINDS[known.config.training.optim].pages and placement.device == "cuda" else 0
    least = memory.peak_bytes - paged
    if least > there:
        needed = f"the run needs about {least / 1e9:.1f} GB"
        return f"{needed} and {placement.device_name} has {there / 1e9:.1f} GB available"
    kept, available = memory.host_bytes, main_memory()[1]
    if placement.stated or kept <= available:
        return None
    return f"the run keeps about {kept / 1e9:.1f} GB in main memory, and {available / 1e9:.1f} GB of that are available"


def _training_sizes(known: KnownRun, batches: BatchSampler, layout: BatchLayout) -> TrainingSizes:
    """The sizes of a run whose largest batch is that of its first epoch."""
    shape, data, epoch = known.shape, known.data, batches.epoch(0)
    largest = max(epoch, key=lambda rows: layout.positions([batches.lengths[i] for i in rows]))
    rows = [data.train[i] for i in largest]
    steps = known.config.training.max_steps
    read = epoch if steps is None else epoch[: steps * batches.accumulation]
    whole_model, on_cuda = shape.targets is None, known.placement.device == "cuda"
    return TrainingSizes(
        frozen_parameters=0 if whole_model else shape.total_parameters - shape.quantized_parameters,
        quantized_parameters=shape.quantized_parameters,
        trainable_parameters=shape.trainable_parameters,
        dtype_bytes=known.placement.dtype.itemsize,
        stacks=tuple(_stack_sizes(known, stack, rows, read, layout) for stack in shape.depths),
        batch_targets=sum(example.trained for example in rows),
        chunk_targets=targets_in_chunk(shape.vocabulary, known.placement.total_bytes if on_cuda else None),
        vocabulary=len(data.renderer.labels) or shape.vocabulary,
        whole_model=whole_model,
        head_trained=shape.targets is None or bool(shape.targets.saved),
        quantization=shape.quantization,
        quantized_rows=shape.few_bits.rows,
        optimizer_bytes=sum(map(KINDS[known.config.training.optim].state_bytes, shape.trained)),
        largest_trained=max((math.prod(tensor.shape) for tensor in shape.trained), default=0),
        drops=noise_of(shape.config) is not None,
        start_parameters=known.kept_starts,
        experts=shape.experts,
        streamed=_streamed(known),
        ends=tuple(known.placement.dtype.itemsize * numbers for numbers in shape.ends) if _feeds(known) else (),
        device=known.placement.device,
        fused=on_cuda and known.config.training.kernels == "auto",
    )


def _stack_sizes(
    known: KnownRun, stack: str, largest: Sequence[Example], read: Sequence[Sequence[int]], layout: BatchLayout
) -> StackSizes:
    """Those of one stack, which reads the largest batch and these, of the numbers of rows."""

    def lengths_of(examples: Iterable[Example]) -> list[int]:
        return [length for example in examples for length in known.task.read_by(stack, example)]

    train = known.data.train
    batches = [lengths_of(train[i] for i in batch) for batch in read]
    lines = (layout.filled(max(rows)) for rows in batches)
    attended = {-(-row // STEP) for row in chain.from_iterable(batches)} if layout.packed else set(lines)
    return StackSizes(
        layer=known.shape.layers[stack],
        update=known.shape.updates[stack],
        graph_layers=known.shape.graph_layers(stack),
        batch_tokens=layout.positions(lengths_of(largest)),
        longest_row=layout.filled(max(lengths_of(train))),
        lengths=len({layout.positions(rows) for rows in batches}),
        attended_lengths=len(attended),
    )


def _feeds(known: KnownRun) -> bool:
    return known.config.model.stream_layers and has_own_memory(known.placement.device)


def _streamed(known: KnownRun) -> tuple[int, ...]:
    """The bytes of each layer that is fed to the device."""
    if not _feeds(known):
        return ()
    width, quantization = known.placement.dtype.itemsize, known.shape.quantization
    return tuple(plain * width + quantized_bytes(packed, 0, quantization) for plain, packed in known.shape.matrices)
