"""A run before its first step: every `auto` resolved, every problem found, every number known.

This module knows how config, data and a model's shape become a plan, and it is the same plan that `check` shows
and `train` carries out: what one refuses, the other refuses. It loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from loraft.adapters.anatomy import targets_in
from loraft.adapters.targets import Targets
from loraft.config.schema import RunConfig
from loraft.data.batches import BatchPlan, Layout
from loraft.data.prepare import PreparedData, prepare
from loraft.data.stream import StreamPlan
from loraft.errors import ConfigError, Problem, Refused, ResourceError
from loraft.models.families import Family, family_of
from loraft.models.loading import check_dtype, linear_modules, load_config, load_tokenizer, meta_model, parameter_count
from loraft.models.placement import Placement, place
from loraft.models.quantization import quantized_modules
from loraft.models.sources import cache_folder, resolve
from loraft.models.weights import check_weights, expected_tensors
from loraft.training.loss import targets_in_chunk
from loraft.training.memory import LayerSizes, MemoryPlan, TrainingSizes, predict
from loraft.training.optim import resolve_optim, warmup_steps
from loraft.training.tracking import tracker_problems

__all__ = ["ModelShape", "RunPlan", "plan_run"]

Result = TypeVar("Result")
LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
LINE_STEP = 32
ROOM = 0.9
"""Gradient checkpointing is turned on where a run without it is predicted to need more than this of the memory."""


@dataclass(frozen=True, eq=False)
class ModelShape:
    """What is known of a model from its config and the headers of its files.

    Attributes:
        family: Its row in the table of architectures.
        total_parameters: Its numbers, tied ones once.
        quantized_parameters: Those that a 4-bit base stores in 4 bits.
        num_layers: Its transformer layers.
        layer: The sizes of one layer.
        vocabulary: The entries of its vocabulary.
        context: The longest row that its positions allow; None where nothing limits it.
        targets: What the adapter trains; None for `method: full`.
        linear: The linear modules: (in, out) by full name.
    """

    family: Family
    total_parameters: int
    quantized_parameters: int
    num_layers: int
    layer: LayerSizes
    vocabulary: int
    context: int | None
    targets: Targets | None
    linear: dict[str, tuple[int, int]]

    @property
    def trainable_parameters(self) -> int:
        """What training changes."""
        return self.total_parameters if self.targets is None else self.targets.trainable_parameters


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A run, decided.

    Attributes:
        config: The config with every `auto` resolved that decides what is computed.
        placement: Device and dtype.
        tokenizer: The model's, or the one the config names.
        data: Rows as tokens.
        shape: The model's shape.
        batches: Which rows share a batch.
        layout: How they are laid.
        memory: What it will need.
        steps: All optimizer steps.
        warmup: The steps of warm-up.
        eval_every: Steps between evaluations; None is the end of each epoch.
        save_every: Steps between checkpoints; None is the end of each epoch.
        notes: What was decided and found, a sentence each.
    """

    config: RunConfig
    placement: Placement
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    shape: ModelShape
    batches: BatchPlan | StreamPlan
    layout: Layout
    memory: MemoryPlan
    steps: int
    warmup: int
    eval_every: int | None
    save_every: int | None
    notes: tuple[str, ...]


def plan_run(config: RunConfig) -> RunPlan:
    """Decide everything about a run that can be decided before its weights are loaded.

    Raises:
        Refused: With every problem that was found, of the model and of the data.
    """
    problems: list[Problem] = []
    placement = _collected(problems, lambda: place(config.model))
    shape = _collected(problems, lambda: _shape(config))
    if placement is not None and shape is not None:
        _collected(problems, lambda: check_dtype(shape.family, placement))
    tokenizer = _collected(problems, lambda: load_tokenizer(config.model))
    data = _collected(problems, lambda: prepare(config, tokenizer, cache_folder())) if tokenizer is not None else None
    if shape is not None:
        problems += _beyond_context(config, shape)
    problems += tracker_problems(config.training.report_to)
    if placement is None or shape is None or tokenizer is None or data is None or problems:
        raise Refused.several(problems)
    config, notes = _resolved(config, placement)
    packed = shape.family.packs and config.data.packing != "off" and config.model.attn_implementation == "auto"
    if config.data.packing == "fill" and not packed:
        raise ConfigError(
            f"rows of {shape.family.model_type} cannot be laid end to end"
            if not shape.family.packs
            else "filled rows need the attention that keeps rows apart",
            key="data.packing",
            remedy="write packing: auto" if not shape.family.packs else "write model.attn_implementation: auto",
        )
    known = _batch_plan(config, data)
    batches = known if data.stream is None else StreamPlan(data.stream, known.batch_size, known.accumulation)
    steps = _steps(config, batches)
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    config, memory, memory_notes = _memory(config, placement, shape, data, known, packed=packed)
    return RunPlan(
        config=config,
        placement=placement,
        tokenizer=tokenizer,
        data=data,
        shape=shape,
        batches=batches,
        layout=Layout(packed, pad_id, multiple_of=_line_step(placement)),
        memory=memory,
        steps=steps,
        warmup=warmup_steps(config.training.warmup_steps, steps),
        eval_every=_every(config.training.eval_steps, steps),
        save_every=_every(config.training.save_steps, steps),
        notes=(
            *placement.notes, *data.renderer.notes, *notes,
            *data.report.notes, *_packing_notes(config, shape, data, packed=packed), *memory_notes,
        ),
    )  # fmt: skip


def _line_step(placement: Placement) -> int:
    """On a CPU the kernels of 16-bit products are made anew for each length, which costs more than some padding."""
    return LINE_STEP if placement.device == "cpu" and placement.dtype != torch.float32 else 1


def _collected(problems: list[Problem], decide: Callable[[], Result]) -> Result | None:
    """What `decide` gives, or None with its problems noted, so that the others are found too."""
    try:
        return decide()
    except Refused as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def _shape(config: RunConfig) -> ModelShape:
    architecture = load_config(config.model)
    family = family_of(architecture.model_type)
    skeleton = meta_model(architecture)
    folder = resolve(config.model.name_or_path, config.model.revision, weights=False)
    if any(folder.glob("*.safetensors*")) or Path(config.model.name_or_path).is_dir():
        check_weights(folder, expected_tensors(skeleton))
    linear = linear_modules(skeleton)
    stack = [name for name in linear if name.startswith(f"{family.layers_path}.0.")]
    quantized = quantized_modules(skeleton) if config.method == "qlora" else ()
    adapts = config.method != "full"
    return ModelShape(
        family=family,
        total_parameters=parameter_count(skeleton),
        quantized_parameters=sum(linear[name][0] * linear[name][1] for name in quantized),
        num_layers=len(skeleton.get_submodule(family.layers_path)),  # type: ignore[arg-type]
        layer=LayerSizes(
            hidden=architecture.hidden_size,
            linear_inputs=sum(linear[name][0] for name in stack),
            linear_outputs=sum(linear[name][1] for name in stack),
            inner=max(max(linear[name]) for name in stack),
            heads=architecture.num_attention_heads,
        ),
        vocabulary=architecture.vocab_size,
        context=architecture.max_position_embeddings if hasattr(architecture, "max_position_embeddings") else None,
        targets=targets_in(skeleton, family, config.lora, quantized=config.method == "qlora") if adapts else None,
        linear=linear,
    )


def _beyond_context(config: RunConfig, shape: ModelShape) -> list[Problem]:
    if shape.context is None or config.data.max_length <= shape.context:
        return []
    return [
        Problem(
            f"{config.data.max_length} tokens are more than the {shape.context} positions of the model",
            key="data.max_length",
            remedy=f"write {shape.context} or less",
        )
    ]


def _resolved(config: RunConfig, placement: Placement) -> tuple[RunConfig, list[str]]:
    """The config without the `auto`s that decide what is computed, and what there is to say about them."""
    training, dtype = config.training, str(placement.dtype).removeprefix("torch.")
    rate = LEARNING_RATES[config.method] if training.learning_rate == "auto" else training.learning_rate
    optim, note = resolve_optim(training, method=config.method, device=placement.device)
    compute = dtype if config.quantization.compute_dtype == "auto" else config.quantization.compute_dtype
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


def _batch_plan(config: RunConfig, data: PreparedData) -> BatchPlan:
    return BatchPlan(
        lengths=[len(example.input_ids) for example in data.train],
        spans=data.train_sources,
        batch_size=config.training.per_device_train_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
        seed=config.seed,
        group_by_length=config.training.group_by_length,
        fill_to=config.data.max_length if config.data.packing == "fill" else None,
    )


def _steps(config: RunConfig, batches: BatchPlan | StreamPlan) -> int:
    if config.training.max_steps is not None:
        return config.training.max_steps
    whole, part = divmod(config.training.num_train_epochs, 1)
    last = math.ceil(part * batches.steps(int(whole))) if part else 0
    return sum(batches.steps(epoch) for epoch in range(int(whole))) + last


def _every(setting: float | None, steps: int) -> int | None:
    if setting is None:
        return None
    return max(1, round(setting * steps)) if setting < 1 else int(setting)


def _memory(
    config: RunConfig, placement: Placement, shape: ModelShape, data: PreparedData, batches: BatchPlan, *, packed: bool
) -> tuple[RunConfig, MemoryPlan, list[str]]:
    """Predict the peak, turn gradient checkpointing on where it is needed, and refuse what cannot fit."""
    sizes = _training_sizes(config, placement, shape, data, batches, packed=packed)
    quantization = config.quantization if config.method == "qlora" else None

    def needed(checkpointing: bool) -> MemoryPlan:
        return predict(
            sizes, optimizer=config.training.optim, quantization=quantization,
            checkpointing=checkpointing, device=placement.device,
        )  # fmt: skip

    setting, notes = config.training.gradient_checkpointing, []
    if setting == "auto":
        setting = needed(checkpointing=False).peak_bytes > ROOM * placement.available_bytes
        if setting:
            notes.append("training.gradient_checkpointing auto is on: without it the run would not fit in memory")
    memory = needed(checkpointing=setting)
    if memory.peak_bytes > placement.available_bytes:
        raise ResourceError(
            f"the run needs about {memory.peak_bytes / 1e9:.1f} GB and {placement.device_name} has "
            f"{placement.available_bytes / 1e9:.1f} GB available",
            key="training.per_device_train_batch_size",
            remedy=_less_memory(config, memory),
        )
    training = config.training.model_copy(update={"gradient_checkpointing": setting})
    return config.model_copy(update={"training": training}), memory, notes


def _less_memory(config: RunConfig, memory: MemoryPlan) -> str:
    if memory.activations + memory.logits > memory.peak_bytes / 2:
        return (
            "a smaller per_device_train_batch_size with more gradient_accumulation_steps trains the same with less, "
            "and so does training.gradient_checkpointing: true"
        )
    return {
        "full": "method lora or qlora needs a fraction of it",
        "lora": "method qlora stores the frozen weights in 4 bits",
        "qlora": "the weights alone are too many for this machine; choose a smaller model",
    }[config.method]


def _training_sizes(
    config: RunConfig, placement: Placement, shape: ModelShape, data: PreparedData, batches: BatchPlan, *, packed: bool
) -> TrainingSizes:
    lengths = batches.lengths
    largest = max(batches.epoch(0), key=lambda rows: _cells([lengths[i] for i in rows], packed=packed))
    trainable = shape.trainable_parameters
    frozen = 0 if shape.targets is None else shape.total_parameters - shape.quantized_parameters
    first = 0 if shape.targets is None or not shape.targets.layers else shape.targets.layers[0]
    return TrainingSizes(
        frozen_parameters=frozen,
        quantized_parameters=shape.quantized_parameters,
        trainable_parameters=trainable,
        dtype_bytes=torch.empty(0, dtype=placement.dtype).element_size(),
        layer=shape.layer,
        graph_layers=shape.num_layers - first,
        batch_tokens=_cells([lengths[i] for i in largest], packed=packed),
        longest_row=max(lengths),
        batch_targets=sum(sum(label != -100 for label in data.train[i].labels) for i in largest),
        chunk_targets=targets_in_chunk(shape.vocabulary),
        vocabulary=shape.vocabulary,
        whole_model=shape.targets is None,
    )


def _cells(lengths: list[int], *, packed: bool) -> int:
    return sum(lengths) if packed else max(lengths) * len(lengths)


def _packing_notes(config: RunConfig, shape: ModelShape, data: PreparedData, *, packed: bool) -> list[str]:
    if config.data.packing == "fill":
        alone = BatchPlan(
            [len(e.input_ids) for e in data.train], data.train_sources, config.training.per_device_train_batch_size,
            config.training.gradient_accumulation_steps, config.seed,
        )  # fmt: skip
        filled = _batch_plan(config, data).steps(0)
        return [f"data.packing fill: {filled} optimizer steps an epoch remain of {alone.steps(0)}"]
    if config.data.packing == "auto" and not packed:
        return [f"rows are padded on the right: {shape.family.model_type} is not laid end to end with this attention"]
    return []
