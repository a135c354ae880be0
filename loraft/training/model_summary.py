"""What is known of a model before its weights are loaded, and the sizes that decide how much memory a run needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from loraft.adapters.inject import start_of
from loraft.adapters.targets import TargetModules, depths, targets_in
from loraft.config.schema import RunConfig
from loraft.dataset.build import PreparedData
from loraft.dataset.sampler import BatchSampler
from loraft.kernels.cross_entropy import targets_in_chunk
from loraft.models.auto_model import meta_model
from loraft.models.device import DeviceConfig
from loraft.models.hf_config import class_names, context_of, is_classifier, quietly_reading
from loraft.models.load_model import drop_modules, load_any_config, missing_head_modules
from loraft.models.modules import decoder_inputs, linear_modules, parameter_count
from loraft.models.quantize import quantized_modules
from loraft.models.registry import ModelSpec, spec_of
from loraft.models.safetensors_index import check_weights, expected_tensors, fingerprint
from loraft.models.sources import ModelHandle
from loraft.tasks import TASKS
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example
from loraft.training.memory import LayerSizes, StackSizes, TrainingSizes


@dataclass(frozen=True, eq=False)
class ModelSummary:
    """What is known of a model from its config and the headers of its files.

    Attributes:
        family: Its row in the table of architectures.
        total_parameters: Its numbers, tied ones once.
        quantized_parameters: Those that a 4-bit base stores in 4 bits.
        depths: The transformer layers of each stack.
        layers: The sizes of one layer of each stack.
        vocabulary: The entries of its vocabulary.
        context: The longest row that its positions allow; None where nothing limits it.
        targets: What the adapter trains; None for `method: full`.
        linear: The linear modules: (in, out) by full name.
        notes: What was found, a sentence each.
    """

    family: ModelSpec
    total_parameters: int
    quantized_parameters: int
    depths: Mapping[str, int]
    layers: Mapping[str, LayerSizes]
    vocabulary: int
    context: int | None
    targets: TargetModules | None
    linear: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    @property
    def trainable_parameters(self) -> int:
        """What training changes."""
        return self.total_parameters if self.targets is None else self.targets.trainable_parameters

    def first_trained(self, stack: str) -> int | None:
        """The lowest layer of a stack that training changes; None where it changes none of them."""
        if self.targets is None:
            return 0
        return min(self.targets.layers_by_stack.get(stack, ()), default=None)

    def graph_layers(self, stack: str) -> int:
        """The layers of a stack that keep activations: all above the lowest trained one.

        A decoder over an encoder that is trained keeps them in every layer: each reads what the encoder gives.
        """
        first = self.first_trained(stack)
        trained_below = stack == "decoder" and len(self.depths) > 1 and self.first_trained("encoder") is not None
        if first is None or trained_below:
            return self.depths[stack] if trained_below else 0
        return self.depths[stack] - first


def summarize_model(
    run: RunConfig, model: ModelHandle, labels: Sequence[str], config: PreTrainedConfig
) -> ModelSummary:
    """The shape of the model that a run trains.

    Args:
        run: The run.
        model: Its base.
        labels: The classes of a classifier; none for other tasks.
        config: The model's config; for a classifier one that knows the classes.

    Raises:
        ModelError: Its files lack tensors or have others, or its decoder has no start token.
        AdapterError: The `lora` section names what the model does not have, or goes on from another adapter.
    """
    family = spec_of(config.model_type, TASKS[run.task].families)
    skeleton = meta_model(config)
    folder = model.small_files
    if family.encoder_path is not None:
        _require_start(skeleton, folder)
    new = family.classifier if labels else ()
    has_weights = any(folder.glob("*.safetensors*")) or Path(run.model.name_or_path).is_dir()
    if has_weights:
        new = missing_head_modules(folder, config, family) if labels else ()
        check_weights(folder, drop_modules(new, expected_tensors(skeleton)))
    linear = linear_modules(skeleton)
    quantized = quantized_modules(skeleton) if run.method == "qlora" else ()
    head = family.classifier if labels else ()
    targets, start = None, None
    if run.method != "full":
        targets = targets_in(skeleton, family, run.lora, quantized=run.method == "qlora", head=head)
        start = start_of(run.lora, targets, labels)
    told = start.check_base(fingerprint(folder)) if start is not None and has_weights else ()
    return ModelSummary(
        family=family,
        total_parameters=parameter_count(skeleton),
        quantized_parameters=sum(linear[name][0] * linear[name][1] for name in quantized),
        depths=depths(skeleton, family),
        layers={stack: _layer(skeleton, linear, path) for stack, path in family.stacks.items()},
        vocabulary=config.vocab_size,
        context=context_of(config, family),
        targets=targets,
        linear=linear,
        notes=(*told, *(_head_notes(run, model, new) if labels else ())),
    )


def _require_start(skeleton: PreTrainedModel, folder: Path) -> None:
    if (folder / GENERATION_CONFIG_NAME).is_file():
        with quietly_reading(folder / GENERATION_CONFIG_NAME):
            skeleton.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    some_token = (skeleton.config.pad_token_id or 0) + 1  # mBART looks for the last one that is no padding
    decoder_inputs(skeleton, torch.full((1, 1), some_token))


def _head_notes(run: RunConfig, model: ModelHandle, new: Sequence[str]) -> Iterator[str]:
    """What there is to say about where a classifier's head begins."""
    base = load_any_config(model)
    if run.method != "full" and run.lora.start_from is not None:
        yield "the head for classes is that of lora.start_from, and training goes on with it"
    elif not new:
        yield "the base has a head for these classes, and training goes on with it"
    elif is_classifier(base):
        classes = ", ".join(class_names(base))
        yield f"the base has a head for other classes ({classes}): {' and '.join(new)} begins anew"
    else:
        begin = "begin" if len(new) > 1 else "begins"
        yield f"the base has no head for classes: {' and '.join(new)} {begin} with random numbers, by the seed"


def _layer(model: PreTrainedModel, linear: Mapping[str, tuple[int, int]], path: str) -> LayerSizes:
    inside = [name for name in linear if name.startswith(f"{path}.0.")]
    return LayerSizes(
        hidden=model.config.hidden_size,
        linear_inputs=sum(linear[name][0] for name in inside),
        linear_outputs=sum(linear[name][1] for name in inside),
        inner=max(max(linear[name]) for name in inside),
        heads=model.config.num_attention_heads,
    )


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
