"""The table of a model's layers: each linear module, and what LoRA would train there.

This module puts together what `anatomy` says of a model and what `adapters` say of targets: rows of plain values, for
people and machines alike. It reads no weights, and it never prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraft.adapters.targets import family_in, targets_in
from loraft.config.sections import LoraSection
from loraft.errors import AdapterError, ModelError
from loraft.inspection.anatomy import Anatomy, anatomy_of
from loraft.inspection.parameter_counts import DTYPE_BYTES, Storage, read_storage
from loraft.models.auto_model import meta_model
from loraft.models.load_model import Model, load_any_config, load_config
from loraft.models.modules import linear_modules
from loraft.models.registry import FAMILIES, ModelSpec
from loraft.models.sources import ModelHandle


@dataclass(frozen=True)
class ModuleRow:
    """A linear module.

    Attributes:
        name: Its name inside its layer; its full name outside the layers.
        path: Its full name.
        shape: The sizes of its weight as it is stored: [out, in], and [in, out] of GPT-2's.
        parameters: Its numbers, the bias with them.
        dtype: The dtype that its weight is stored in.
        bytes: What its numbers take there.
        lora_target: Whether LoRA goes there.
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
    """A layer.

    Attributes:
        stack: The stack that it belongs to.
        index: Its place there, from 0.
        parameters: Its numbers, norms and all.
        modules: Its linear modules.
    """

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
        saved: The modules that are trained whole besides.
        saved_parameters: Their parameters.
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
        anatomy: What it is made of.
        layers: Its layers, stack by stack.
        outside: Its linear modules outside the layers, such as the head.
        lora: What LoRA would train; None where it was refused, and a note says why.
        notes: What a person should know, a sentence each.
        family: Its row of the table of architectures.
        storage: How its tensors are stored.
        transposed: The modules whose weight is stored [in, out].
    """

    anatomy: Anatomy
    layers: tuple[LayerRow, ...]
    outside: tuple[ModuleRow, ...]
    lora: LoraCount | None
    notes: tuple[str, ...]
    family: ModelSpec
    storage: Storage
    transposed: frozenset[str]


@dataclass(frozen=True)
class Adapted:
    """What an adapter that is there already adapts.

    Attributes:
        name: What it is called.
        ranks: The rank of each module by its full name.
        saved: The sizes of the tensors that it holds whole.
        magnitudes: Whether it has DoRA's magnitudes.
    """

    name: str
    ranks: Mapping[str, int]
    saved: Mapping[str, tuple[int, ...]]
    magnitudes: bool


def model_table(
    model: Model,
    lora: LoraSection | None = None,
    adapted: Adapted | None = None,
    labels: Sequence[str] = (),
) -> ModelTable:
    """Look at a model without loading its weights.

    Args:
        model: Which model.
        lora: What LoRA is to be counted for; None counts `adapted`, or what a config with nothing in it would train.
        adapted: An adapter that is there already.
        labels: The classes that it tells apart: the model is looked at with the head that tells them, whose names the
            adapter's are, whether or not the files have it.

    Raises:
        ModelError: No such model, or one that cannot be looked into.
        AdapterError: `lora` fits nothing.
    """
    handle = ModelHandle.of(model)
    config = load_config(handle, FAMILIES, labels) if labels else load_any_config(handle)
    storage = read_storage(handle.small_files, config)
    empty = meta_model(config)
    family = family_in(empty)
    anatomy = _anatomy(empty, family, storage)
    ranks, count, notes = (
        _count_adapted(empty, family, adapted, anatomy.parameters)
        if lora is None and adapted is not None
        else _count_section(empty, family, lora, anatomy.parameters)
    )
    magnitudes = lora.use_dora if lora is not None else adapted is not None and adapted.magnitudes
    rows = _rows(empty, storage, ranks, magnitudes=magnitudes)
    return ModelTable(
        anatomy=anatomy,
        layers=_by_layer(empty, family, rows),
        outside=tuple(row for path, row in rows.items() if not _is_inside(path, family)),
        lora=count,
        notes=notes,
        family=family,
        storage=storage,
        transposed=frozenset(name for name, module in empty.named_modules() if isinstance(module, Conv1D)),
    )


def _anatomy(model: PreTrainedModel, family: ModelSpec, storage: Storage) -> Anatomy:
    try:
        return anatomy_of(model, family, storage)
    except Exception as error:  # a family of the table is known to come apart; of others nothing is known
        if family.model_type in FAMILIES:
            raise
        raise ModelError(
            f"model type {family.model_type!r} is not in loraft's table, and it cannot be looked into: {error}"
        ) from error


Counted = tuple[Mapping[str, int] | None, LoraCount | None, tuple[str, ...]]
"""The rank of each module, the sum of it, and what a person should know."""


def _count_section(model: PreTrainedModel, family: ModelSpec, lora: LoraSection | None, parameters: int) -> Counted:
    """The rank of each module that LoRA would adapt, and the sum of it; both None where it cannot go."""
    section = lora if lora is not None else LoraSection()
    try:
        targets = targets_in(model, family, section, quantized=False)
    except AdapterError as error:
        if lora is not None:
            raise
        return None, None, tuple(f"LoRA is not counted: {problem.message}" for problem in error.problems)
    count = LoraCount(
        source="what is asked for" if lora is not None else "the defaults of a config",
        rank=_one_or_all(targets.ranks),
        modules=len(targets.modules),
        layers=targets.layers_by_stack,
        parameters=targets.parameters,
        saved=targets.saved,
        saved_parameters=targets.saved_parameters,
        trained_share=targets.trainable_parameters / (parameters + targets.parameters),
    )
    return targets.ranks, count, ()


def _count_adapted(model: PreTrainedModel, family: ModelSpec, adapted: Adapted, parameters: int) -> Counted:
    """The rank of each module that an adapter adapts, and the sum of it."""
    shapes = {name: shape for name, shape in linear_modules(model).items() if name in adapted.ranks}
    updates = sum(
        adapted.ranks[name] * (inputs + outputs) + adapted.magnitudes * outputs
        for name, (inputs, outputs) in shapes.items()
    )
    saved = sum(math.prod(shape) for shape in adapted.saved.values())
    places = [
        (stack, int(name.removeprefix(f"{path}.").partition(".")[0]))
        for stack, path in family.stacks.items()
        for name in shapes
        if name.startswith(f"{path}.")
    ]
    count = LoraCount(
        source=f"the adapter {adapted.name}",
        rank=_one_or_all(adapted.ranks),
        modules=len(adapted.ranks),
        layers={stack: tuple(sorted({index for owner, index in places if owner == stack})) for stack, _ in places},
        parameters=updates,
        saved=tuple(adapted.saved),
        saved_parameters=saved,
        trained_share=(updates + saved) / (parameters + updates),
    )
    return adapted.ranks, count, ()


def _one_or_all(ranks: Mapping[str, int]) -> int | tuple[int, ...]:
    different = sorted(set(ranks.values()))
    return different[0] if len(different) == 1 else tuple(different)


def _rows(
    model: PreTrainedModel, storage: Storage, ranks: Mapping[str, int] | None, *, magnitudes: bool
) -> dict[str, ModuleRow]:
    """Each linear module by its full name."""
    rows = {}
    for path, (inputs, outputs) in linear_modules(model).items():
        module = model.get_submodule(path)
        dtype = storage.dtype_of(f"{path}.weight")
        size = sum(weight.numel() for weight in module.parameters())
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        rank = ranks.get(path, 0) if ranks is not None else 0
        rows[path] = ModuleRow(
            name=path,
            path=path,
            shape=tuple(weight.shape),
            parameters=size,
            dtype=dtype,
            bytes=size * DTYPE_BYTES.get(dtype, 4),
            lora_target=rank > 0,
            lora_parameters=None if ranks is None else rank * (inputs + outputs) + bool(rank and magnitudes) * outputs,
        )
    return rows


def _is_inside(path: str, family: ModelSpec) -> bool:
    return path.startswith(tuple(f"{stack}." for stack in family.stacks.values()))


def _by_layer(model: PreTrainedModel, family: ModelSpec, rows: Mapping[str, ModuleRow]) -> tuple[LayerRow, ...]:
    found = []
    for stack, path in family.stacks.items():
        for index, layer in enumerate(model.get_submodule(path).children()):
            prefix = f"{path}.{index}."
            inside = [row for name, row in rows.items() if name.startswith(prefix)]
            size = sum(weight.numel() for weight in layer.parameters())
            modules = tuple(replace(row, name=row.path.removeprefix(prefix)) for row in inside)
            found.append(LayerRow(stack, index, size, modules))
    return tuple(found)
