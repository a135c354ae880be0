"""What is known of a run, its model and its data, before anything is decided and a weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loraft.adapters.adapter_files import AdapterFiles
from loraft.adapters.effect import begins_as_the_base
from loraft.adapters.start_from import biases_of_b, start_of
from loraft.adapters.targets import TargetModules, family_notes, targets_in
from loraft.config.change_config import with_values
from loraft.config.schema import RunConfig
from loraft.config.sections import FROM_WEIGHTS, QuantizationSection
from loraft.dataset.build import PreparedData, prepare
from loraft.errors import InvalidInputError, ModelError, Problem
from loraft.io.hub_access import hub_problems
from loraft.io.paths import cache_folder
from loraft.models.auto_model import generation_defaults_in
from loraft.models.base_files import ModelInFiles, base_files, require_tensors
from loraft.models.device import DTYPES, DeviceConfig, StatedDevice, select_device
from loraft.models.hf_config import check_dtype, context_of, own_code
from loraft.models.load_model import load_config, load_noted_tokenizer, stored_in
from loraft.models.model_structure import depths, feed_forward_parts, grow, ids_of
from loraft.models.modules import decoder_inputs, is_within, parameter_count
from loraft.models.probe import spec_of
from loraft.models.registry import ModelSpec, place_in
from loraft.models.safetensors_index import fingerprint
from loraft.models.sources import ModelHandle
from loraft.models.stored_weights import StoredWeights
from loraft.optimization.optimizer import TrainedTensor, trained_tensors
from loraft.planning.base_weights import (
    ExpertSizes,
    FewBits,
    LayerSizes,
    experts_of_a_layer,
    frozen_ends,
    head_notes,
    in_few_bits,
    layer_sizes,
    matrices_of_layers,
    quantization_of,
    stored_notes,
    unused_notes,
)
from loraft.planning.new_tokens import about_new_tokens, unseen_tokens
from loraft.planning.router_loss import router_loss
from loraft.planning.sample_prompts import sample_problems
from loraft.planning.trackers import tracker_problems
from loraft.planning.update_sizes import UpdateSizes, update_sizes
from loraft.rows.standard_input import with_input_kept
from loraft.tasks import TASKS
from loraft.tasks.task import Task

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ModelSummary:
    """What is known of a model from its config and the headers of its files.

    Attributes:
        config: Its config, with a place for new tokens.
        total_parameters: Its numbers, tied ones once.
        few_bits: What of it is stored in 4 or 8 bits.
        quantization: How these are stored.
        stored: How the files hold the weights, where these are quantized.
        depths: The transformer layers of each stack.
        feed_forward: The modules that are a layer's feed-forward part and can be computed in tiles along time.
        updates: What dropout and DoRA keep in a layer of each stack.
        experts: What the experts of a layer need while it computes.
        ends: The numbers of the embeddings and of the head, where both are frozen, and neither is the other.
        matrices: Of each layer, the numbers of its own matrices that are stored plainly and in few bits.
        context: The longest row that its positions allow; None where nothing limits it.
        targets: What the adapter trains; None for `method: full`.
        lowest_saved: Of the stacks that a module that is trained whole lies in or below, the lowest such layer.
        trained: Every tensor that is trained.
        router_aux_loss_coef: What the auxiliary loss of a mixture's routers counts.
        notes: What was found, a sentence each.
    """

    config: PreTrainedConfig
    family: ModelSpec
    total_parameters: int
    few_bits: FewBits
    quantization: QuantizationSection | None
    stored: StoredWeights | None
    depths: Mapping[str, int]
    layers: Mapping[str, LayerSizes]
    updates: Mapping[str, UpdateSizes]
    feed_forward: tuple[str, ...]
    experts: ExpertSizes
    ends: tuple[int, ...]
    matrices: tuple[tuple[int, int], ...]
    vocabulary: int
    context: int | None
    targets: TargetModules | None
    lowest_saved: Mapping[str, int]
    trained: tuple[TrainedTensor, ...]
    router_aux_loss_coef: float
    notes: tuple[str, ...]

    @property
    def quantized_parameters(self) -> int:
        """The numbers that are stored in few bits."""
        return self.few_bits.parameters

    @property
    def trainable_parameters(self) -> int:
        """What training changes."""
        return self.total_parameters if self.targets is None else self.targets.trainable_parameters

    @property
    def parameters_in_training(self) -> int:
        """All numbers, those of the adapter included."""
        return self.total_parameters + (0 if self.targets is None else self.targets.trainable_parameters)

    def graph_layers(self, stack: str) -> int:
        """The layers of a stack that keep activations: all from the lowest trained one up.

        A decoder over an encoder that is trained keeps them in every layer: each reads what the encoder gives.
        """
        depth = self.depths[stack]
        if self.targets is None:
            return depth
        trained = self.targets.layers_by_stack
        loose = [name for name in self.targets.biases if not is_within(name.rpartition(".")[0], *self.targets.modules)]
        if loose or self.targets.rows:  # biases and embeddings below every adapted layer
            return depth
        if stack == "decoder" and trained.get("encoder"):
            return depth
        return depth - min((*trained.get(stack, ()), self.lowest_saved.get(stack, depth)))

    @property
    def frozen_layers(self) -> int:
        """The layers below the lowest trained one, of the last stack."""
        stack = list(self.depths)[-1]
        return self.depths[stack] - self.graph_layers(stack)


def summarize_model(
    run: RunConfig, model: ModelHandle, labels: Sequence[str], tokens: Sequence[int] = ()
) -> ModelSummary:
    """The shape of the model that a run trains; `labels` are a classifier's classes, `tokens` the ids of new ones.

    Raises:
        ModelError: Its files lack tensors or have others, or its decoder has no start token.
        AdapterError: The `lora` section names what the model does not have, or goes on from another adapter.
    """
    config = load_config(model, group := TASKS[run.task].group, labels)
    family, base = spec_of(config, group), base_files(config, model.small_files, has_weights=model.has_weights)
    skeleton = base.model
    _require_start(base, family, labels)
    tensors, head = require_tensors(base, labels), family.classifier if labels else ()
    _refuse_own_code(run, config)
    own_rows, stored = grow(skeleton, tokens) if tokens else 0, stored_in(model)
    tiles = tuple(feed_forward_parts(skeleton, family))
    quantization = quantization_of(run, stored)
    few_bits = in_few_bits(base, family, quantization, stored)
    about_files = head_notes(run, model, tensors.new) if labels else unused_notes(tensors.unused)
    notes = [*base.notes, *stored_notes(run, stored), *about_files]
    targets = None
    if run.method != "full":
        targets = targets_in(skeleton, family, run.lora, quantized=few_bits.modules, head=head, tokens=tokens)
        targets, about_start = _goes_on(targets, start_of(run.lora, targets, labels), base)
        notes = [*about_start, *notes]
    coefficient, about_routers = router_loss(run, skeleton, family, targets)
    notes += about_new_tokens(run.model.add_tokens if tokens else (), skeleton, own_rows, targets)
    return ModelSummary(
        config=skeleton.config,
        family=family,
        total_parameters=parameter_count(skeleton),
        few_bits=few_bits,
        quantization=quantization,
        stored=stored,
        depths=depths(skeleton, family.stacks),
        experts=experts_of_a_layer(skeleton, family, few_bits.experts, targets),
        ends=frozen_ends(skeleton, targets),
        matrices=matrices_of_layers(run, skeleton, family, few_bits, targets, stored),
        layers={stack: layer_sizes(skeleton, path, tiles) for stack, path in family.stacks.items()},
        updates=update_sizes(skeleton, family, targets, run.lora),
        feed_forward=tiles,
        vocabulary=skeleton.config.get_text_config().vocab_size,
        context=context_of(config, family),
        targets=targets,
        lowest_saved=_lowest_saved(skeleton, family, targets),
        trained=tuple(trained_tensors(skeleton, family, targets, use_dora=run.lora.use_dora)),
        router_aux_loss_coef=coefficient,
        notes=(*notes, *family_notes(skeleton, family, targets, quantized=few_bits.modules), *about_routers),
    )


def _lowest_saved(skeleton: PreTrainedModel, family: ModelSpec, targets: TargetModules | None) -> dict[str, int]:
    """By stack, the lowest layer that gradients pass on their way to what is trained whole: 0 if it is read before."""
    saved = targets.saved if targets is not None else ()
    places = {name: place for place, (name, _) in enumerate(skeleton.named_modules(remove_duplicate=False))}
    lowest: dict[str, int] = {}
    for stack, path in family.stacks.items():
        inside = [place.layer for name in saved if (place := place_in(family.stacks, name)).stack == stack]
        if found := [*inside, *(0 for name in saved if places[name] < places[path])]:
            lowest[stack] = min(found)
    return lowest


def _goes_on(targets: TargetModules, start: AdapterFiles | None, base: ModelInFiles) -> tuple[TargetModules, list[str]]:
    """What is trained where training goes on from an adapter, and what there is to say of it and its base."""
    notes = list(start.check_base(fingerprint(base.folder))) if start is not None and base.has_weights else []
    of_b = biases_of_b(start)
    if not of_b:
        return targets, notes
    note = "the adapter of lora.start_from has biases of B (lora_bias), and training goes on with them"
    return replace(targets, biases={**targets.biases, **of_b}), [*notes, note]


def _refuse_own_code(run: RunConfig, config: PreTrainedConfig) -> None:
    if run.method == "full" and own_code(config):
        message = "the model is computed by code that it brings; one trained whole would need it, and no code is saved"
        raise ModelError(message, key="method", remedy="Write method: lora, whose adapter goes with the base.")


def _require_start(base: ModelInFiles, family: ModelSpec, labels: Sequence[str]) -> None:
    if family.encoder_path is None or labels:
        return
    skeleton = base.model
    skeleton.generation_config = generation_defaults_in(base.folder) or skeleton.generation_config
    some_token = (skeleton.config.pad_token_id or 0) + 1  # mBART looks for the last one that is no padding
    decoder_inputs(skeleton, torch.full((1, 1), some_token))


@dataclass(frozen=True, eq=False)
class KnownRun:
    """What is known of model and data before anything of the run is decided.

    Attributes:
        config: The run; once it is planned, every `auto` is resolved that decides what is computed.
        notes: What was found, and then decided, a sentence each.
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

    @property
    def saved_starts(self) -> int:
        """The numbers that an adapter began with and that are saved with it."""
        targets = self.shape.targets
        return targets.parameters if targets is not None and self.config.lora.init in FROM_WEIGHTS else 0

    @property
    def kept_starts(self) -> int:
        """The numbers that what is trained began with and that are kept: to be saved, or to be compared with."""
        compares = self.task.has_reference(self.config)
        compared = compares and not begins_as_the_base(self.config.lora, self.shape.targets)
        return self.saved_starts + (self.shape.trainable_parameters if compared else 0)


def known_run(config: RunConfig, stated: StatedDevice | None = None) -> KnownRun:
    """Look at model and data, each as far as the other lets it; for a device that is stated, or for this machine's.

    Raises:
        InvalidInputError: With every problem that was found of both.
    """
    problems: list[Problem] = []
    config = _collected(problems, partial(with_input_kept, config)) or config
    placement = _collected(problems, lambda: select_device(config.model, stated))
    task, model = TASKS[config.task], ModelHandle(config.model)
    architecture = _collected(problems, lambda: load_config(model, task.group))
    length_notes: list[str] = []
    if architecture is not None:
        family = spec_of(architecture, task.group)
        config, length_notes = _fitting_length(config, context_of(architecture, family))
        dtype = placement.dtype if placement is not None else DTYPES.get(config.model.dtype)
        _collected(problems, lambda: check_dtype(family, dtype))
    read = _collected(problems, lambda: load_noted_tokenizer(model, task.group))
    data = _collected(problems, lambda: prepare(config, read[0], cache_folder())) if read is not None else None
    # Of a classifier whose classes could not be found the shape is that of one with two.
    labels = data.renderer.labels if data is not None else () if task.generates else ("0", "1")
    tokens = ids_of(read[0], config.model.add_tokens) if read is not None else ()
    summarize = partial(summarize_model, config, model, labels, tokens)
    shape = _collected(problems, summarize) if architecture is not None else None
    if shape is not None:
        problems += _beyond_context(config, shape)
        if read is not None and data is not None and labels:
            problems += _without_end(config, shape, read[0], data)
        if data is not None:
            problems += sample_problems(config, data.renderer, shape.context)
    problems += tracker_problems(config.training.report_to)
    if config.training.push_to_hub is not None:
        problems += hub_problems(config.training.push_to_hub, Problem("", key="training.push_to_hub"))
    if data is not None:
        problems += task.problems(config, data.renderer)
    if placement is None or shape is None or read is None or data is None or problems:
        raise InvalidInputError.several(problems)
    unseen = unseen_tokens(config.model.add_tokens, tokens, data)
    notes = (*placement.notes, *read[1], *shape.notes, *unseen, *length_notes)
    return KnownRun(config, model, placement, data, shape, notes)


def _fitting_length(config: RunConfig, context: int | None) -> tuple[RunConfig, list[str]]:
    """`data.max_length`, where it is not set, no more than the positions of the model."""
    if context is None or "max_length" in config.data.model_fields_set or config.data.max_length <= context:
        return config, []
    changed = with_values(config, {"data.max_length": context})
    return changed, [f"data.max_length is {context}: the model has no more positions"]


def _collected(problems: list[Problem], decide: Callable[[], Result]) -> Result | None:
    """What `decide` gives, or None with its problems noted, so that the others are found too."""
    try:
        return decide()
    except InvalidInputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None


def _without_end(
    config: RunConfig, shape: ModelSummary, tokenizer: PreTrainedTokenizerBase, data: PreparedData
) -> list[Problem]:
    """A classifier over an encoder and a decoder decides at the end-of-text token, which its tokenizer must append."""
    first = None if config.data.streaming else next(iter(data.train), None)
    if shape.family.encoder_path is None or first is None or tokenizer.eos_token_id in first.input_ids:
        return []
    message = (
        f"the tokenizer ends no row, and a classifier of type {shape.family.model_type} decides at the end of text"
    )
    remedy = "Name a tokenizer that appends the end-of-text token in model.tokenizer."
    return [Problem(message, key="model.tokenizer", remedy=remedy)]


def _beyond_context(config: RunConfig, shape: ModelSummary) -> list[Problem]:
    longest = math.inf if shape.context is None else shape.context
    said, remedy = f"tokens are more than the {longest} positions of the model", f"write {longest} or less"
    limits = TASKS[config.task].length_limits(config.data)
    return [Problem(f"{most} {said}", key=key, remedy=remedy) for key, most in limits.items() if most > longest]
