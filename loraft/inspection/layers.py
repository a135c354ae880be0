"""The table of a model's layers: each linear module, and what LoRA would train there; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.adapter_reader import AdapterReader
from loraft.adapters.targets import targets_in
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, ModelError
from loraft.inspection.anatomy import Anatomy, anatomy_of
from loraft.inspection.storage import Storage, bytes_of, read_storage
from loraft.models.base_files import base_files
from loraft.models.load_model import Model, load_any_config, load_config
from loraft.models.model_structure import family_in, placed_layers
from loraft.models.modules import linear_modules, modules_of, parameter_count
from loraft.models.registry import FAMILIES, ModelSpec, place_in
from loraft.models.sources import ModelHandle


@dataclass(frozen=True)
class ModuleRow:
    """A linear module.

    Attributes:
        name: Its name inside its layer; its full name outside the layers.
        shape: The sizes of its weight as it is stored: [out, in], and [in, out] of GPT-2's.
        parameters: Its numbers, the bias with them.
        lora_parameters: What LoRA would train there: r · (in + out); None where that was not to be counted.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    parameters: int
    dtype: str
    bytes: int
    lora_target: bool
    lora_parameters: int | None


@dataclass(frozen=True)
class LayerRow:
    """A layer: its place in its stack, and its numbers, norms and all."""

    stack: str
    index: int
    parameters: int
    modules: tuple[ModuleRow, ...]


@dataclass(frozen=True)
class LoraCount:
    """What LoRA trains, in all.

    Attributes:
        source: What said so.
        rank: r, or the ranks where they differ.
        modules: How many modules.
        layers: The layers that they lie in, by stack.
        parameters: Parameters of the low-rank updates.
        saved: What is trained whole besides: modules, biases, rows of embeddings.
        trained_share: All that is trained, of the model with it.
    """

    source: str
    rank: int | tuple[int, ...]
    modules: int
    layers: Mapping[str, tuple[int, ...]]
    parameters: int
    saved: tuple[str, ...]
    saved_parameters: int
    trained_share: float


@dataclass(frozen=True, eq=False)
class ModelTable:
    """A model, looked at.

    Attributes:
        layers: Its layers, stack by stack.
        outside: Its linear modules outside the layers, such as the head.
        lora: What LoRA would train; None where it was refused, and a note says why.
        notes: What a person should know, a sentence each.
        transposed: The modules whose weight is stored [in, out].
    """

    anatomy: Anatomy
    layers: tuple[LayerRow, ...]
    outside: tuple[ModuleRow, ...]
    lora: LoraCount | None
    notes: tuple[str, ...]
    storage: Storage
    transposed: frozenset[str]
    embeddings: frozenset[str]


def model_table(
    model: Model,
    lora: LoraSection | None = None,
    adapted: tuple[str, AdapterReader] | None = None,
    labels: Sequence[str] = (),
) -> ModelTable:
    """Look at a model without loading its weights.

    Args:
        model: Which model.
        lora: What LoRA is to be counted for; None counts `adapted`, or what a config with nothing in it would train.
        adapted: The name of an adapter that is there already, and the adapter.
        labels: The classes that it tells apart: the model is looked at with the head that tells them, whose names the
            adapter's are, whether or not the files have it.

    Raises:
        ModelError: No such model, or one that cannot be looked into.
        AdapterError: `lora` fits nothing.
    """
    handle = ModelHandle.of(model)
    config = load_config(handle, None, labels) if labels else load_any_config(handle)
    folder = handle.small_files  # where an index alone is what the Hub gives beside a config
    base = base_files(config, folder, has_weights=any(folder.glob("*.safetensors")))
    empty, storage = base.model, read_storage(base)
    family = family_in(empty)
    anatomy = _anatomy(empty, family, storage)
    notes, trained = base.notes, None
    try:
        trained = _of_adapter(*adapted) if lora is None and adapted is not None else _of_section(empty, family, lora)
    except AdapterError as error:
        if lora is not None:
            raise
        notes += tuple(f"LoRA is not counted: {problem.message}" for problem in error.problems)
    layers, outside = _rows(empty, family, storage, trained)
    count = _count(trained, layers, anatomy.parameters) if trained else None
    transposed, embeddings = (frozenset(modules_of(empty, kind)) for kind in (Conv1D, nn.Embedding))
    return ModelTable(anatomy, layers, outside, count, notes, storage, transposed, embeddings)


def _anatomy(model: PreTrainedModel, family: ModelSpec, storage: Storage) -> Anatomy:
    try:
        return anatomy_of(model, family, storage)
    except Exception as error:  # a family of the table is known to come apart; of others nothing is known
        if family.model_type in FAMILIES:
            raise
        message = f"model type {family.model_type!r} is not in loraft's table, and it cannot be looked into: {error}"
        raise ModelError(message) from error


class _Trained(NamedTuple):
    """What an adapter trains.

    That is the rank of each module, DoRA's magnitudes or not, what is trained whole, and how many numbers the updates
    and the rest have.
    """

    source: str
    ranks: Mapping[str, int]
    magnitudes: bool
    saved: tuple[str, ...]
    updates: int
    whole: int


def _of_section(model: PreTrainedModel, family: ModelSpec, lora: LoraSection | None) -> _Trained:
    section = lora if lora is not None else LoraSection()
    targets = targets_in(model, family, section)
    source = "what is asked for" if lora is not None else "the defaults of a config"
    updates = targets.parameters + sum(weight.parameters for weight in targets.weights)
    saved, whole = (*targets.saved, *targets.biases), targets.trainable_parameters - updates
    return _Trained(source, targets.ranks, section.use_dora, saved, updates, whole)


def _of_adapter(name: str, opened: AdapterReader) -> _Trained:
    magnitudes, saved = bool(opened.declared.get("use_dora")), (*opened.whole, *opened.tokens)
    updates = sum(tensor.numel() for parts in opened.updates.values() for tensor in parts.values())
    rows = (tensor for _, tensor in opened.tokens.values())
    whole = sum(tensor.numel() for tensor in (*opened.whole.values(), *rows))
    return _Trained(f"the adapter {name}", opened.ranks, magnitudes, saved, updates, whole)


def _count(trained: _Trained, layers: Sequence[LayerRow], parameters: int) -> LoraCount:
    inside: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        if any(row.lora_target for row in layer.modules):
            inside[layer.stack] = (*inside.get(layer.stack, ()), layer.index)
    source, ranks, _, saved, updates, whole = trained
    rank = tuple(sorted(set(ranks.values())))
    share = (updates + whole) / (parameters + updates)
    return LoraCount(source, rank[0] if len(rank) == 1 else rank, len(ranks), inside, updates, saved, whole, share)


def _rows(
    model: PreTrainedModel, family: ModelSpec, storage: Storage, trained: _Trained | None
) -> tuple[tuple[LayerRow, ...], tuple[ModuleRow, ...]]:
    """The layers with their linear modules, and the linear modules outside of them."""
    inside = {place: list[ModuleRow]() for place, _ in placed_layers(model, family.stacks)}
    outside: list[ModuleRow] = []
    for path, (inputs, outputs) in linear_modules(model).items():
        module, dtype = model.get_submodule(path), storage.dtype_of(f"{path}.weight")
        assert isinstance(module.weight, nn.Parameter)
        place = place_in(family.stacks, path)
        size = parameter_count(module)
        rank = trained.ranks.get(path, 0) if trained else 0
        updates = rank * (inputs + outputs) + (outputs if rank and trained and trained.magnitudes else 0)
        name, shape, counted = place.inside or path, tuple(module.weight.shape), updates if trained else None
        row = ModuleRow(name, path, shape, size, dtype, int(size * bytes_of(dtype)), rank > 0, counted)
        inside.get(place[:2], outside).append(row)
    layers = placed_layers(model, family.stacks)
    rows = (LayerRow(*place, parameter_count(layer), tuple(inside[place])) for place, layer in layers)
    return tuple(rows), tuple(outside)
