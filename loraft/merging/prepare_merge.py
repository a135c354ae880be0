"""What a merge needs to know before a weight is read: the adapters, their base, and that they fit.

For adapters that were trained on a quantized base there are two bases to merge into. `dequantized` is the one that
training saw: every tensor in the dtype that it was loaded in, the linear ones quantized and dequantized again.
`original` is the base as its files have it, which the adapter has never met.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loraft.adapters.adapter_files import read_adapter, refuse_other_base
from loraft.adapters.lora_factors import parse_key
from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.adapters.resolve_target import base_named_by, classes_of, or_unseen, resolve_target
from loraft.adapters.token_rows import refuse_untrained_rows
from loraft.config.sections import QuantizationSection
from loraft.errors import AdapterError, ModelError
from loraft.merging.merge_plan import MergePlan, WeightedAdapter, plan_merge
from loraft.models.base_files import ModelInFiles, base_files, require_tensors
from loraft.models.device import DTYPES
from loraft.models.hf_config import code_notes, own_code
from loraft.models.load_model import load_config
from loraft.models.model_structure import grow
from loraft.models.probe import spec_of
from loraft.models.quantize import experts_in_4_bits, quantized_modules
from loraft.models.registry import ModelSpec
from loraft.models.safetensors_index import TORCH_DTYPES, TensorHeader, fingerprint, mapped_tensor

BaseChoice = Literal["original", "dequantized"]
MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge that is known to fit, before a weight is read.

    Attributes:
        target: What was asked for: `target.model` is the base.
        trained_storage: How the base was stored while the adapters were trained, as recorded or else assumed; None is
            unquantized.
        storage: How it is quantized for the merge; None merges into the `original` base.
        loaded_in: The dtype that it was loaded in for training; that of the result where nothing was recorded, and
            where its files hold quantized weights, so that their other tensors are taken as they are.
        dtype: Of the result: of most of its bytes, where its tensors differ.
        casts: Whether all tensors get that dtype; if not, each stays in its own.
        base: What is merged into, with a place for new tokens.
        sources: The tensors of its files that the model has too, by their names in it.
        converted: Those that loading computes from tensors of the files, by their names in the model, and from which.
        quantized: The tensors that quantizing would replace.
        grown: The sizes of the tensors that are larger than in the base, for new tokens, by their names in the model.
        labels: The classes that the result tells apart; none where it writes text.
    """

    target: ResolvedTarget
    base: ModelInFiles
    family: ModelSpec
    adapters: tuple[WeightedAdapter, ...]
    plan: MergePlan
    trained_storage: QuantizationSection | None
    storage: QuantizationSection | None
    loaded_in: torch.dtype
    dtype: torch.dtype
    casts: bool
    sources: Mapping[str, TensorHeader]
    converted: Mapping[str, tuple[TensorHeader, ...]]
    quantized: frozenset[str]
    grown: Mapping[str, tuple[int, ...]]
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_as_trained(self) -> bool:
        """Whether the base that is merged into is the one that all adapters were trained on."""
        return self.trained_storage == self.storage and not _are_mixed(self.target)

    @property
    def is_packed(self) -> bool:
        """Whether the base's files hold quantized weights, which the merge dequantizes into its dtype."""
        return self.base.is_packed

    @property
    def architecture(self) -> str:
        """The class of transformers that loads the result."""
        return type(self.base.model).__name__

    @property
    def dtype_name(self) -> str:
        """As the config writes it."""
        return str(self.dtype).removeprefix("torch.")


def weighted(given: str) -> tuple[str, float]:
    """The place and the weight in a value of `adapters`, `PLACE=WEIGHT`; a weight that is left out is 1.

    Raises:
        AdapterError: The weight is no finite number.
    """
    place, equals, number = given.rpartition("=")
    if not equals or os.path.exists(given):  # asks without raising
        return given, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not place or not math.isfinite(weight):
        message = f"{number!r} is no weight"
        raise AdapterError(message, parameter="adapters", remedy="Write DIR=WEIGHT, such as runs/a=0.7, or DIR alone.")
    return place, weight


def resolve_weighted(
    target: str | None, given: Sequence[str], *, base_model: str | None = None, alone: bool = False
) -> tuple[ResolvedTarget, tuple[float, ...]]:
    """Find what is to be merged, as `resolve_target` does: the base with its adapters, and their weights.

    Raises:
        AdapterError: Nothing is found there, or a base without an adapter that may not be `alone`.
    """
    places = [weighted(each) for each in given]
    # Names of our own: two runs may have folders of one name, and nobody asks for an adapter by its name here.
    named = [f"adapter-{number}={place}" for number, (place, _) in enumerate(places, start=1)]
    found = resolve_target(target, named, base_model=base_model)
    if not found.adapters and not alone:
        message = f"{target} has no adapter that could be merged{or_unseen(target or '')}"
        remedy = "Name an adapter, a run or a checkpoint, or add `adapters`."
        raise AdapterError(message, parameter="target", remedy=remedy)
    return found, tuple(weight for _, weight in places) or (1.0,) * len(found.adapters)


def prepare_merge(
    target: ResolvedTarget, weights: Sequence[float], *, base: BaseChoice | None = None, dtype: MergedDtype = "auto"
) -> Merge:
    """Read the adapters and the headers of their base, and see that they fit.

    The base that is merged into is by default the one that they were trained on; `auto` is the dtype of its files.

    Raises:
        InvalidInputError: The base or an adapter cannot be read, or they do not go together or into the dtype.
    """
    adapters = tuple(
        WeightedAdapter(_shown(each.folder), read_adapter(each.folder), weight)
        for each, weight in zip(target.adapters, weights, strict=True)
    )
    with base_named_by(target):
        config = load_config(target.model, None, labels := classes_of(target))
    family = spec_of(config)
    _refuse_unmergeable(config, family, dtype, target.model.folder)
    files = base_files(config, folder := target.model.folder)
    model, held = files.model, require_tensors(files, labels).held
    grown = _grown(model, target.model.tokens, adapters)
    sources, converted = _sources(files, held)
    _refuse_another_base(adapters, sources, model.all_tied_weights_keys)
    trained_storage, storage, about_storage = _storages(target, base, is_packed=files.is_packed)
    plan = _with_tied_rows(plan_merge(model, adapters, held), sources, model.all_tied_weights_keys)
    own, about_code = fingerprint(folder), code_notes(folder, *(adapter.files.folder for adapter in adapters))
    linear = (f"{name}.weight" for name in quantized_modules(model))
    recorded = (DTYPES[each.dtype] for each in target.adapters if each.dtype in DTYPES)
    of_result = _widespread_dtype(files.headers) if dtype == "auto" else DTYPES[dtype]
    about_base = [note for each in adapters for note in each.files.check_base(own)]
    return Merge(
        target=target,
        base=files,
        family=family,
        adapters=adapters,
        plan=plan,
        trained_storage=trained_storage,
        storage=storage,
        loaded_in=of_result if files.is_packed else next(recorded, of_result),
        dtype=of_result,
        casts=dtype != "auto",
        sources=sources,
        converted=converted,
        quantized=frozenset((*linear, *experts_in_4_bits(model, family, storage))),
        grown=grown,
        labels=labels,
        notes=(*target.notes, *about_code, *about_base, *files.notes, *about_storage),
    )


def _refuse_unmergeable(config: PreTrainedConfig, family: ModelSpec, dtype: MergedDtype, folder: Path) -> None:
    """Refuse what the merged model could not be: computed by code that is not saved, or in a dtype that overflows."""
    if own_code(config):
        message = "the base is computed by code that it brings, and a merged model would need it: loraft saves no code"
        remedy = "Use the adapter unmerged: `loraft.generate` with `adapters`."
        raise ModelError(message, where=folder, remedy=remedy)
    if dtype == "float16" and not family.stable_in_float16:
        message = f"{family.model_type} is not stable in float16: its activations overflow"
        raise ModelError(message, parameter="dtype", remedy="Merge into bfloat16 or float32.")


def _shown(folder: Path) -> str:
    """What reports call an adapter: its path as it was given, or of an absolute one the end that tells."""
    name = shown(str(folder))
    return f"{folder.parent.name}/{name}" if folder.is_absolute() and name == "adapter" else name


def _sources(
    base: ModelInFiles, held: Collection[str]
) -> tuple[dict[str, TensorHeader], dict[str, tuple[TensorHeader, ...]]]:
    """Where the files have the tensors of a model: as they are, and those that loading computes from others."""
    whole_numbers = (name for name, tensor in base.model.state_dict().items() if not tensor.is_floating_point())
    names = {*held, *base.model.all_tied_weights_keys, *whole_numbers}
    origins = {name: origin for name, origin in base.origins.items() if name in names}
    sources = {name: origin.parts[0] for name, origin in origins.items() if not origin.converted}
    return sources, {name: origin.parts for name, origin in origins.items() if origin.converted}


def _refuse_another_base(
    adapters: Sequence[WeightedAdapter], sources: Mapping[str, TensorHeader], ties: Mapping[str, str]
) -> None:
    """Compare the base's weights that lie beside an adapter's with those in the base's files."""

    def weight(key: str) -> Tensor:
        name = parse_key(key).name
        return mapped_tensor(sources[name] if name in sources else sources[ties[name]])

    for adapter in adapters:
        refuse_other_base(adapter.files, weight)


def _grown(
    model: PreTrainedModel, tokens: Sequence[int], adapters: Sequence[WeightedAdapter]
) -> dict[str, tuple[int, ...]]:
    """Let an empty model have a place for all `tokens`; the sizes of what is larger then than in the base.

    Raises:
        AdapterError: The base has no row for a token, and neither has an adapter for each table.
    """
    if not tokens:
        return {}
    before, own_rows = _shapes(model), grow(model, tokens)
    for adapter in adapters:
        refuse_untrained_rows(adapter.files, model, own_rows)
    return {name: shape for name, shape in _shapes(model).items() if shape != before.get(name)}


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _with_tied_rows(plan: MergePlan, sources: Mapping[str, TensorHeader], ties: Mapping[str, str]) -> MergePlan:
    """The plan with the rows of a tied weight under each of its names that the files hold it by."""
    rows: dict[str, tuple[Sequence[int], Tensor]] = {}
    for name, found in plan.rows.items():
        source = ties.get(name, name)
        held = [each for each in (source, *ties) if ties.get(each, each) == source and each in sources]
        rows |= dict.fromkeys(held or [name], found)
    return replace(plan, rows=rows)


def _widespread_dtype(headers: Mapping[str, TensorHeader]) -> torch.dtype:
    """The floating dtype of most bytes."""
    sizes = Counter[str]()
    for header in headers.values():
        sizes[header.dtype] += header.stop - header.start
    return next(TORCH_DTYPES[word] for word, _ in sizes.most_common() if word in TORCH_DTYPES)


def _are_mixed(target: ResolvedTarget) -> bool:
    """Whether the adapters were trained on bases that were stored differently: no base is the one that all know."""
    return len({each.quantization for each in target.adapters}) > 1


def _storages(
    target: ResolvedTarget, base: BaseChoice | None, *, is_packed: bool
) -> tuple[QuantizationSection | None, QuantizationSection | None, list[str]]:
    """How the base was stored in training, how it is quantized for the merge, and what there is to say of it.

    A base whose files are quantized (`is_packed`) is merged into as it is, dequantized.

    Raises:
        AdapterError: The adapters were trained on bases that were stored differently, and the base is not `original`;
            or it is to be, and the files are quantized.
    """
    if is_packed:
        if base == "original":
            message = "the base's files hold quantized weights: there is no other base here to merge into"
            remedy = "Leave `base` out, or name the unquantized model: `base_model=MODEL`."
            raise AdapterError(message, parameter="base", remedy=remedy)
        note = "the base's files hold quantized weights: the merged model has them dequantized, and is larger"
        return None, None, [note]
    mixed = _are_mixed(target)
    if mixed and base != "original":
        raise AdapterError(
            "the adapters were trained on bases that were stored differently, so there is no one base that all know",
            parameter="adapters",
            remedy="Merge them into the original base: `base='original'`.",
        )
    recorded = None if mixed else target.quantization
    storage = None if base == "original" or (base is None and recorded is None) else recorded or QuantizationSection()
    tells = any(each.fingerprint for each in target.adapters)
    notes = []
    if recorded and not storage:
        notes.append(
            f"the adapter was trained on its base in {recorded.type}, and is merged into the original one: "
            "the result is another model than the one that was trained"
        )
    if storage and not recorded:
        notes.append(
            "the adapter was trained on the unquantized base: quantizing it for the merge adds an error"
            if tells
            else "the adapter does not say how its base was stored: nf4 with double quantization is assumed"
        )
    if mixed:
        quantized = [each.folder.as_posix() for each in target.adapters if each.quantization is not None]
        notes.append(
            f"the adapters were trained on bases that were stored differently ({', '.join(quantized)} quantized): "
            "on the original one, with which they are merged and compared, their sum was never trained"
        )
    return recorded or (None if tells else storage), storage, notes
