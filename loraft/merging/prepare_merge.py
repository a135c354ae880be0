"""What a merge needs to know before a weight is read: the adapters, their base, and that they fit.

For adapters that were trained on a base in 4 bits there are two bases to merge into. `dequantized` is the one that
training saw: every tensor in the dtype that it was loaded in, the linear ones quantized and dequantized again.
`original` is the base as its files have it, which the adapter has never met.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraft.adapters.adapter_files import read_adapter, refuse_other_base
from loraft.adapters.lora_factors import parse_key
from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.adapters.resolve_target import base_named_by, classes_of
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, ModelError
from loraft.merging.merge_plan import MergePlan, WeightedAdapter, plan_merge
from loraft.models.auto_model import meta_model
from loraft.models.device import DTYPES
from loraft.models.hf_config import code_notes
from loraft.models.load_model import load_config, require_tensors
from loraft.models.modules import is_within
from loraft.models.quantize import quantized_modules
from loraft.models.registry import FAMILIES, ModelSpec, spec_of
from loraft.models.safetensors_index import (
    TORCH_DTYPES,
    TensorHeader,
    expected_tensors,
    fingerprint,
    header_of,
    mapped_tensor,
    read_headers,
)
from loraft.models.sources import ModelHandle

BaseChoice = Literal["original", "dequantized"]
MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge that is known to fit, before a weight is read.

    Attributes:
        target: What was asked for.
        model: The base.
        architecture: The name of the class of transformers that the base is.
        folder: Where its files are.
        family: Its row of the table of architectures.
        adapters: What is folded into it.
        plan: What becomes of its tensors.
        base: Which base it is merged into.
        trained_storage: How the base was stored while the adapters were trained, as recorded or else assumed; None is
            unquantized.
        storage: How it is quantized for the merge, where `base` is `dequantized`.
        mixed: The adapters were trained on bases that were stored differently: no base is the one that all know.
        trained_dtype: The dtype that it was loaded in then; None where nothing was recorded.
        asked_dtype: The dtype of the result where one is asked for; None leaves each tensor in its own.
        headers: The base's tensors, by their names in its files.
        names: What the files call each tensor of the model.
        quantized: The tensors that 4-bit loading would replace.
        labels: The classes that the result tells apart; none where it writes text.
        new_modules: The modules of its head that the base lacks, and an adapter brings.
        notes: What a person should know, a sentence each.
    """

    target: ResolvedTarget
    model: ModelHandle
    architecture: str
    folder: Path
    family: ModelSpec
    adapters: tuple[WeightedAdapter, ...]
    plan: MergePlan
    base: BaseChoice
    trained_storage: QuantizationSection | None
    storage: QuantizationSection | None
    mixed: bool
    trained_dtype: torch.dtype | None
    asked_dtype: torch.dtype | None
    headers: Mapping[str, TensorHeader]
    names: Mapping[str, str]
    quantized: frozenset[str]
    labels: tuple[str, ...]
    new_modules: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_as_trained(self) -> bool:
        """Whether the base that is merged into is the one that the adapters were trained on."""
        return self.trained_storage == self.storage and not self.mixed

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result: of most of its bytes, where its tensors differ."""
        if self.asked_dtype is not None:
            return self.asked_dtype
        sizes: defaultdict[str, int] = defaultdict(int)
        for header in self.headers.values():
            sizes[header.dtype] += header.stop - header.start
        return TORCH_DTYPES[max((word for word in sizes if word in TORCH_DTYPES), key=lambda word: sizes[word])]

    @property
    def dtype_name(self) -> str:
        """Its name, as the config writes it."""
        return str(self.dtype).removeprefix("torch.")


def prepare_merge(
    target: ResolvedTarget, weights: Sequence[float], *, base: BaseChoice | None = None, dtype: MergedDtype = "auto"
) -> Merge:
    """Read the adapters and the headers of their base, and see that they fit.

    Args:
        target: The base with its adapters.
        weights: How much of each adapter is merged.
        base: The base to merge into; None is the one that the adapters were trained on.
        dtype: Of the result; `auto` is that of the base's files.

    Raises:
        InvalidInputError: An adapter is damaged or does not fit its base, adapters cannot be summed, the base cannot be
            read, or it is not stable in the dtype.
    """
    adapters = tuple(
        WeightedAdapter(_shown(each.folder), read_adapter(each.folder), weight)
        for each, weight in zip(target.adapters, weights, strict=True)
    )
    read = _read_base(target, dtype)
    for adapter in adapters:
        _refuse_another_base(adapter, read)
    own = fingerprint(read.folder)
    notes = (*target.notes, *code_notes(read.folder, *(adapter.files.folder for adapter in adapters)))
    base, trained_storage, storage, about_storage = _storage(target, base)
    return Merge(
        target=target,
        model=target.model,
        architecture=type(read.model).__name__,
        folder=read.folder,
        family=read.family,
        adapters=adapters,
        plan=_complete(plan_merge(read.model, adapters), read, adapters[0]),
        base=base,
        trained_storage=trained_storage,
        storage=storage,
        mixed=len({each.quantization for each in target.adapters}) > 1,
        trained_dtype=_trained_dtype(adapters),
        asked_dtype=None if dtype == "auto" else DTYPES[dtype],
        headers=read.headers,
        names=read.names,
        quantized=frozenset(f"{name}.weight" for name in quantized_modules(read.model)),
        labels=read.labels,
        new_modules=read.new_modules,
        notes=(*notes, *(note for each in adapters for note in each.files.check_base(own)), *about_storage),
    )


@dataclass(frozen=True, eq=False)
class _Base:
    """The base, as its config and the headers of its files tell it; `model` has no weights."""

    model: PreTrainedModel
    folder: Path
    family: ModelSpec
    labels: tuple[str, ...]
    new_modules: tuple[str, ...]
    headers: Mapping[str, TensorHeader]
    names: Mapping[str, str]


def _read_base(target: ResolvedTarget, dtype: MergedDtype) -> _Base:
    with base_named_by(target):
        labels = classes_of(target)
        config = load_config(target.model, FAMILIES, labels)
    family = spec_of(config.model_type, FAMILIES)
    _refuse_overflow(family, dtype)
    folder = target.model.folder
    model = meta_model(config)
    new, expected = require_tensors(folder, model, labels)
    headers = read_headers(folder)
    return _Base(model, folder, family, labels, new, headers, _names_in_files(model, expected, headers))


def _refuse_another_base(adapter: WeightedAdapter, base: _Base) -> None:
    """Compare the base's weights that lie beside an adapter's with those in the base's files.

    Raises:
        AdapterError: They are others.
    """

    def weight(key: str) -> Tensor:
        name = parse_key(key).name
        theirs = base.names[name] if name in base.names else base.names[base.model.all_tied_weights_keys[name]]
        return mapped_tensor(base.headers[theirs])

    refuse_other_base(adapter.files, weight)


def _complete(plan: MergePlan, base: _Base, adapter: WeightedAdapter) -> MergePlan:
    """The plan, if it writes every tensor that the base lacks.

    Raises:
        AdapterError: The adapter lacks some of them too.
    """
    wanted = {name for name in expected_tensors(base.model) if is_within(name, *base.new_modules)}
    if absent := sorted(wanted - plan.replaced.keys()):
        raise AdapterError(f"neither it nor its base has {', '.join(absent)}", where=str(adapter.files.folder))
    return plan


def _shown(folder: Path) -> str:
    """What reports call an adapter: its path as it was given, or of an absolute one the end that tells."""
    name = shown(str(folder))
    return f"{folder.parent.name}/{name}" if folder.is_absolute() and name == "adapter" else name


def _refuse_overflow(family: ModelSpec, dtype: MergedDtype) -> None:
    if dtype == "float16" and not family.stable_in_float16:
        raise ModelError(
            f"{family.model_type} is not stable in float16: its activations overflow",
            parameter="dtype",
            remedy="Merge into bfloat16 or float32.",
        )


def _storage(
    target: ResolvedTarget, base: BaseChoice | None
) -> tuple[BaseChoice, QuantizationSection | None, QuantizationSection | None, tuple[str, ...]]:
    """The base to merge into, how it was stored in training, how it is quantized now, and what there is to say of it.

    Raises:
        AdapterError: The adapters were trained on bases that were stored differently, and the base is not `original`.
    """
    recorded = _common_storage(target, base)
    base = base or ("dequantized" if recorded else "original")
    storage = (recorded or QuantizationSection()) if base == "dequantized" else None
    tells = any(each.fingerprint for each in target.adapters)
    notes = (*_storage_notes(recorded, base, tells=tells), *_mixed_notes(target))
    return base, recorded or (None if tells else storage), storage, notes


def _common_storage(target: ResolvedTarget, base: BaseChoice | None) -> QuantizationSection | None:
    stored = {each.quantization for each in target.adapters}
    if len(stored) > 1 and base != "original":
        raise AdapterError(
            "the adapters were trained on bases that were stored differently, so there is no one base that all know",
            parameter="adapters",
            remedy="Merge them into the original base: `base='original'`.",
        )
    return target.quantization if len(stored) == 1 else None


def _mixed_notes(target: ResolvedTarget) -> Iterator[str]:
    quantized = [each.folder.as_posix() for each in target.adapters if each.quantization is not None]
    if quantized and len({each.quantization for each in target.adapters}) > 1:
        yield (
            f"the adapters were trained on bases that were stored differently ({', '.join(quantized)} in 4 bits): "
            "on the original one, with which they are merged and compared, their sum was never trained"
        )


def _storage_notes(recorded: QuantizationSection | None, base: BaseChoice, *, tells: bool) -> Iterator[str]:
    if base == "original" and recorded is not None:
        yield (
            f"the adapter was trained on its base in {recorded.type}, and is merged into the original one: "
            "the result is another model than the one that was trained"
        )
    if base == "dequantized" and recorded is None:
        yield (
            "the adapter was trained on the unquantized base: quantizing it for the merge adds an error"
            if tells
            else "the adapter does not say how its base was stored: nf4 with double quantization is assumed"
        )


def _trained_dtype(adapters: Iterable[WeightedAdapter]) -> torch.dtype | None:
    for adapter in adapters:
        recorded = (adapter.files.record or {}).get("base")
        if isinstance(recorded, Mapping) and recorded.get("dtype") in DTYPES:
            return DTYPES[str(recorded["dtype"])]
    return None


def _names_in_files(
    model: PreTrainedModel, expected: Iterable[str], headers: Mapping[str, TensorHeader]
) -> dict[str, str]:
    """What the files call each tensor that they hold; tied ones too, where a file has both."""
    found = {name: header_of(name, headers) for name in (*expected, *model.all_tied_weights_keys)}
    return {name: header.name for name, header in found.items() if header is not None}
