"""A run before its first step: every `auto` resolved, every problem found, every number known.

`check` shows the plan and `train` carries it out: what one refuses, the other refuses.
It loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from loraft.adapters.model_card import shown
from loraft.config.schema import RunConfig
from loraft.dataset.batch_plan import batch_sampler, fills, uses_packing
from loraft.dataset.build import PreparedData, prepare
from loraft.dataset.sampler import BatchSampler
from loraft.dataset.streaming import StreamingSampler
from loraft.errors import ConfigError, InvalidInputError, Problem
from loraft.figures import counted
from loraft.io.paths import cache_folder
from loraft.models.device import DTYPES, DeviceConfig, select_device
from loraft.models.hf_config import check_dtype, context_of
from loraft.models.load_model import load_config, load_noted_tokenizer
from loraft.models.registry import spec_of
from loraft.models.sources import ModelHandle
from loraft.tasks import TASKS
from loraft.tasks.loss import BatchLayout
from loraft.tasks.task import Task
from loraft.training.memory import MemoryPlan, plan_memory
from loraft.training.model_summary import ModelSummary, summarize_model
from loraft.training.optimizer import resolve_optim
from loraft.training.run_events import tracker_problems

Result = TypeVar("Result")
LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
LINE_STEP = 32
CHECKPOINTED = "training.gradient_checkpointing auto is on: without it the run would not fit in memory"


@dataclass(frozen=True, eq=False)
class KnownRun:
    """What is known of model and data before anything of the run is decided.

    Attributes:
        config: The run; of a `RunPlan` it has every `auto` resolved that decides what is computed.
        model: The base model, looked up.
        placement: Device and dtype.
        data: Rows as tokens.
        notes: What was found, and of a `RunPlan` decided too, a sentence each.
    """

    config: RunConfig
    model: ModelHandle
    placement: DeviceConfig
    data: PreparedData
    shape: ModelSummary
    notes: tuple[str, ...]

    @property
    def task(self) -> Task:
        """What is learned."""
        return TASKS[self.config.task]


@dataclass(frozen=True, eq=False)
class RunPlan(KnownRun):
    """A run, decided.

    Attributes:
        batches: Which rows share a batch.
        layout: How they are laid.
        memory: What it will need.
        steps: All optimizer steps.
        eval_every: Steps between evaluations; None is the end of each epoch.
        save_every: Steps between checkpoints; None is the end of each epoch.
    """

    batches: BatchSampler | StreamingSampler
    layout: BatchLayout
    memory: MemoryPlan
    steps: int
    eval_every: int | None
    save_every: int | None


def plan_run(config: RunConfig) -> RunPlan:
    """Decide everything about a run that can be decided before its weights are loaded.

    Raises:
        InvalidInputError: With every problem that was found, of the model and of the data.
    """
    known = _known(config)
    data = known.data
    config, notes = _resolved(known.config, known.placement)
    packed = _packed(config, known.shape)
    drawn = batch_sampler(config, data)
    if not drawn.epoch(0):
        message = "an epoch draws no row: each source's rows times its weight are less than half a row"
        raise ConfigError(message, key="data.train", remedy="write greater weights")
    batches = drawn if data.stream is None else StreamingSampler(data.stream, drawn.batch_size, drawn.accumulation)
    memory, checkpointing = plan_memory(config, known.placement, known.shape, data, drawn, packed=packed)
    memory_notes = (CHECKPOINTED,) if checkpointing and config.training.gradient_checkpointing == "auto" else ()
    training = config.training.model_copy(update={"gradient_checkpointing": checkpointing})
    steps, pad_id = steps_of(config, batches), data.renderer.tokenizer.pad_token_id
    known = replace(
        known,
        config=config.model_copy(update={"training": training}),
        notes=(
            *known.notes, *data.renderer.notes, *notes, *data.report.notes,
            *_packing_notes(config, known.shape, drawn, packed=packed), *memory_notes, *_base_notes(config),
        ),
    )  # fmt: skip
    return RunPlan(
        **vars(known),
        batches=batches,
        layout=BatchLayout(packed, pad_id if isinstance(pad_id, int) else 0, multiple_of=_line_step(known.placement)),
        memory=memory,
        steps=steps,
        eval_every=_every(training.eval_steps, steps),
        save_every=_every(training.save_steps, steps),
    )


def _known(config: RunConfig) -> KnownRun:
    """Look at model and data, each as far as the other lets it, and refuse with every problem of both."""
    problems: list[Problem] = []
    placement = _collected(problems, lambda: select_device(config.model))
    task, model = TASKS[config.task], ModelHandle(config.model)
    architecture = _collected(problems, lambda: load_config(model, task.families))
    length_notes: list[str] = []
    if architecture is not None:
        family = spec_of(architecture.model_type, task.families)
        config, length_notes = _fitting_length(config, context_of(architecture, family))
        dtype = placement.dtype if placement is not None else DTYPES.get(config.model.dtype)
        _collected(problems, lambda: check_dtype(family, dtype))
    read = _collected(problems, lambda: load_noted_tokenizer(model, task.families))
    data = _collected(problems, lambda: prepare(config, read[0], cache_folder())) if read is not None else None
    # Of a classifier whose classes could not be found the shape is that of one with two.
    labels = data.renderer.labels if data is not None else () if task.generates else ("0", "1")
    shape = _collected(problems, lambda: summarize_model(config, model, labels)) if architecture is not None else None
    if shape is not None:
        problems += _beyond_context(config, shape)
    problems += tracker_problems(config.training.report_to)
    if data is not None:
        problems += task.problems(config, data.renderer)
    if placement is None or shape is None or read is None or data is None or problems:
        raise InvalidInputError.several(problems)
    notes = (*placement.notes, *read[1], *shape.notes, *length_notes)
    return KnownRun(config, model, placement, data, shape, notes)


def _packed(config: RunConfig, shape: ModelSummary) -> bool:
    """Whether rows lie end to end; that they are to be filled and cannot lie so is refused."""
    packed = uses_packing(config, packs=shape.family.packs)
    if fills(config) and not packed:
        why, auto = "filled rows need the attention that keeps rows apart", "model.attn_implementation"
        if not shape.family.packs:
            why, auto = f"rows of {shape.family.model_type} cannot be laid end to end", "packing"
        raise ConfigError(why, key="data.packing", remedy=f"write {auto}: auto")
    return packed


def _fitting_length(config: RunConfig, context: int | None) -> tuple[RunConfig, list[str]]:
    """`data.max_length`, where it is not set, no more than the positions of the model."""
    if context is None or "max_length" in config.data.model_fields_set or config.data.max_length <= context:
        return config, []
    data = config.data.model_copy(update={"max_length": context})
    return config.model_copy(update={"data": data}), [f"data.max_length is {context}: the model has no more positions"]


def _base_notes(config: RunConfig) -> Iterator[str]:
    """An adapter names its base as the config does, and a path of this machine means nothing on another."""
    name = config.model.name_or_path
    if config.method != "full" and shown(name) != name:
        said = "where that is not, `base_model=MODEL` says where the base is"
        yield f"the adapter names its base by a path of this machine, {name}: {said}"


def _line_step(placement: DeviceConfig) -> int:
    """On a CPU the kernels of 16-bit products are made anew for each length, which costs more than some padding."""
    return LINE_STEP if placement.device == "cpu" and placement.dtype != torch.float32 else 1


def _collected(problems: list[Problem], decide: Callable[[], Result]) -> Result | None:
    """What `decide` gives, or None with its problems noted, so that the others are found too."""
    try:
        return decide()
    except InvalidInputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def _beyond_context(config: RunConfig, shape: ModelSummary) -> list[Problem]:
    longest = math.inf if shape.context is None else shape.context
    said, remedy = f"tokens are more than the {longest} positions of the model", f"write {longest} or less"
    limits = TASKS[config.task].length_limits(config.data)
    return [Problem(f"{most} {said}", key=key, remedy=remedy) for key, most in limits.items() if most > longest]


def _resolved(config: RunConfig, placement: DeviceConfig) -> tuple[RunConfig, list[str]]:
    """The config without the `auto`s that decide what is computed, and what there is to say about them."""
    training, dtype = config.training, str(placement.dtype).removeprefix("torch.")
    rate = LEARNING_RATES[config.method] if training.learning_rate == "auto" else training.learning_rate
    optim, note = resolve_optim(training, method=config.method, device=placement.device)
    asks = config.method == "qlora" and config.quantization.compute_dtype == "auto"
    compute = dtype if asks else config.quantization.compute_dtype
    notes = [note] if note else []
    if training.learning_rate == "auto":
        notes.append(f"training.learning_rate auto is {rate:g} for method {config.method}")
    if training.max_steps is not None and "num_train_epochs" in training.model_fields_set:
        notes.append(f"training.max_steps {training.max_steps} decides; num_train_epochs is not used")
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": dtype}),
            "quantization": config.quantization.model_copy(update={"compute_dtype": compute}),
            "training": training.model_copy(update={"learning_rate": rate, "optim": optim}),
        }
    ), notes


def steps_of(config: RunConfig, batches: BatchSampler | StreamingSampler) -> int:
    """All optimizer steps of a run."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    whole, part = divmod(config.training.num_train_epochs, 1)
    last = math.ceil(part * batches.steps(int(whole))) if part else 0
    return sum(batches.steps(epoch) for epoch in range(int(whole))) + last


def _every(setting: float | None, steps: int) -> int | None:
    if setting is None:
        return None
    return max(1, round(setting * steps)) if setting < 1 else int(setting)


def _packing_notes(config: RunConfig, shape: ModelSummary, drawn: BatchSampler, *, packed: bool) -> list[str]:
    if fills(config):
        before, filled = replace(drawn, fill_to=None).steps(0), drawn.steps(0)
        remain = counted(filled, "optimizer step an epoch remains", "optimizer steps an epoch remain")
        return [f"data.packing fill: {remain} of {before:,}"] if filled != before else []
    if config.data.packing == "auto" and not packed and TASKS[config.task].packs:
        return [f"rows are padded on the right: {shape.family.model_type} is not laid end to end with this attention"]
    return []
