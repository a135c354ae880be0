"""Adapters folded into their base, from files to files.

No model is held in memory: tensor by tensor from the base's memory-mapped files, a few rows at a time, cast once.
For adapters that were trained on a base in 4 bits there are two bases to merge into. `dequantized` is the one that
training saw: every tensor in the dtype that it was loaded in, the linear ones quantized and dequantized again.
`original` is the base as its files have it, which the adapter has never met.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from loraft.adapters.adapter_files import read_adapter
from loraft.adapters.base_copies import name_of, refuse_others
from loraft.adapters.delta import Run, cast_pieces, updated_pieces
from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.model_card import shown
from loraft.adapters.resolve_target import base_named_by
from loraft.adapters.target_task import classes_of
from loraft.config.sections import ModelSection, QuantizationSection
from loraft.errors import AdapterError, ModelError, NonFiniteError
from loraft.io.atomic import ADAPTER_WEIGHTS
from loraft.merging.merge_plan import MergePlan, WeightedAdapter, plan_merge
from loraft.merging.prefetch import working_ahead
from loraft.models.device import DTYPES
from loraft.models.foreign_code import code_notes
from loraft.models.hf_config import load_config
from loraft.models.load_model import drop_modules, meta_model, missing_head_modules
from loraft.models.quantize import quantize_roundtrip, quantized_modules
from loraft.models.registry import FAMILIES, ModelSpec, spec_of
from loraft.models.safetensors_index import (
    TensorHeader,
    check_weights,
    expected_tensors,
    fingerprint,
    header_of,
    read_headers,
)
from loraft.models.safetensors_writer import TORCH_DTYPES, Slot, in_order, write_index, write_shard
from loraft.models.sources import resolve

BaseChoice = Literal["original", "dequantized"]
MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]
BYTES_AT_ONCE = 4 << 20
WORDS = {dtype: word for word, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Merge:
    """A merge that is known to fit, before a weight is read.

    Attributes:
        target: What was asked for.
        section: The base, as the `model` section of a config.
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
    section: ModelSection
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
    target: ResolvedTarget,
    weights: Sequence[float],
    *,
    base: BaseChoice | None = None,
    dtype: MergedDtype = "auto",
) -> Merge:
    """Read the adapters and the headers of their base, and see that they fit.

    Args:
        target: The base with its adapters.
        weights: How much of each adapter is merged.
        base: The base to merge into; None is the one that the adapters were trained on.
        dtype: Of the result; `auto` is that of the base's files.

    Raises:
        InvalidInputError: An adapter is damaged or does not fit its base, adapters cannot be summed, the base
                cannot be read, or
            it is not stable in the dtype.
    """
    adapters = tuple(
        WeightedAdapter(_shown(each.folder), read_adapter(each.folder), weight)
        for each, weight in zip(target.adapters, weights, strict=True)
    )
    section = target.model_section
    with base_named_by(target):
        labels = classes_of(target)
        config = load_config(section, FAMILIES, labels)
    family = spec_of(config.model_type, FAMILIES)
    _refuse_overflow(family, dtype)
    folder = resolve(section.name_or_path, section.revision)
    model = meta_model(config)
    new = missing_head_modules(folder, config, family) if labels else ()
    expected = drop_modules(new, expected_tensors(model))
    check_weights(folder, expected)
    own = fingerprint(folder)
    headers = read_headers(folder)
    names = _names_in_files(model, expected, headers)
    for adapter in adapters:
        _refuse_another_base(adapter, model, names, headers)
    code = code_notes(folder, *(adapter.files.folder for adapter in adapters))
    notes = (*target.notes, *code, *(note for adapter in adapters for note in adapter.files.check_base(own)))
    recorded = _common_storage(target, base)
    base = base or ("dequantized" if recorded else "original")
    storage = (recorded or QuantizationSection()) if base == "dequantized" else None
    tells = any(each.fingerprint for each in target.adapters)
    return Merge(
        target=target,
        section=section,
        architecture=type(model).__name__,
        folder=folder,
        family=family,
        adapters=adapters,
        plan=_complete(plan_merge(model, adapters), new, expected_tensors(model), adapters[0]),
        base=base,
        trained_storage=recorded or (None if tells else storage),
        storage=storage,
        mixed=len({each.quantization for each in target.adapters}) > 1,
        trained_dtype=_trained_dtype(adapters),
        asked_dtype=None if dtype == "auto" else DTYPES[dtype],
        headers=headers,
        names=names,
        quantized=frozenset(f"{name}.weight" for name in quantized_modules(model)),
        labels=labels,
        new_modules=new,
        notes=(*notes, *_storage_notes(recorded, base, tells=tells), *_mixed_notes(target)),
    )


def _refuse_another_base(
    adapter: WeightedAdapter, model: PreTrainedModel, names: Mapping[str, str], headers: Mapping[str, TensorHeader]
) -> None:
    """Compare the base's weights that lie beside an adapter's with those in the base's files.

    Raises:
        AdapterError: They are others.
    """

    def weight(key: str) -> Tensor:
        name = name_of(key)
        return _mapped(headers[names[name] if name in names else names[model.all_tied_weights_keys[name]]])

    refuse_others(adapter.files.base_copies, weight, str(adapter.files.folder / ADAPTER_WEIGHTS))


def _complete(
    plan: MergePlan, new: Sequence[str], expected: Mapping[str, tuple[int, ...]], adapter: WeightedAdapter
) -> MergePlan:
    """The plan, if it writes every tensor that the base lacks.

    Raises:
        AdapterError: The adapter lacks some of them too.
    """
    wanted = expected.keys() - drop_modules(new, expected).keys()
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
            where="--dtype",
            remedy="Merge into bfloat16 or float32.",
        )


def _common_storage(target: ResolvedTarget, base: BaseChoice | None) -> QuantizationSection | None:
    stored = {each.quantization for each in target.adapters}
    if len(stored) > 1 and base != "original":
        raise AdapterError(
            "the adapters were trained on bases that were stored differently, so there is no one base that all know",
            where="--adapter",
            remedy="Merge them into the original base: --base original.",
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


def plan_files(merge: Merge) -> dict[str, list[Slot]]:
    """What each file of the result holds: those of the base, under their names, with what is new in the last one.

    A classifier's are under its own names, without what the base has besides: transformers tells by the names whether
    a file holds a model with a head, and another head than the classifier's would stay unused.
    """
    files: dict[str, list[Slot]] = {}
    ours = {theirs: name for name, theirs in merge.names.items()} if merge.labels else dict.fromkeys(merge.headers)
    for name, header in sorted(merge.headers.items(), key=lambda item: (item[1].file.name, item[1].start)):
        if name in ours:
            files.setdefault(header.file.name, []).append(Slot(ours[name] or name, _word(merge, header), header.shape))
    changed = dict.fromkeys([*merge.plan.untied, *merge.plan.replaced, *merge.plan.updates])
    for name in (name for name in changed if name not in merge.names):
        shape = merge.plan.replaced[name].shape if name in merge.plan.replaced else _source(merge, name).shape
        last = next(reversed(files.values()))
        last.append(Slot(name, WORDS[merge.dtype], tuple(shape)))
    return {file: in_order(slots) for file, slots in files.items()}


def _word(merge: Merge, header: TensorHeader) -> str:
    """The dtype of a tensor in the result; what is no floating number stays as it is."""
    if header.dtype not in TORCH_DTYPES or merge.asked_dtype is None:
        return header.dtype
    return WORDS[merge.asked_dtype]


def _source(merge: Merge, name: str) -> TensorHeader:
    """Where the base has a tensor of the model: a tied one with the module that it shares its weight with."""
    source = merge.plan.untied.get(name, name)
    return merge.headers[merge.names.get(source, source)]


def write_weights(merge: Merge, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Write the merged tensors into `folder`.

    Args:
        merge: What to write.
        folder: An empty folder.
        progress: Is told the bytes that are written, and all there will be.

    Returns:
        The bytes of all tensors.

    Raises:
        NonFiniteError: A merged tensor holds NaN or infinity.
    """
    files = plan_files(merge)
    total = sum(slot.num_bytes for slots in files.values() for slot in slots)
    models_names = {theirs: ours for ours, theirs in merge.names.items()}
    written = 0
    with working_ahead() as run:

        def pieces(slot: Slot) -> Iterator[Tensor]:
            nonlocal written
            name = models_names.get(slot.name, slot.name)
            for piece in _merged(merge, name, TORCH_DTYPES.get(slot.dtype), run):
                yield piece
                written += piece.numel() * piece.element_size()
                progress(written, total)

        for file, slots in files.items():
            write_shard(folder / file, slots, pieces)
    if len(files) > 1:
        write_index(folder, {slot.name: file for file, slots in files.items() for slot in slots}, total)
    return total


def _merged(merge: Merge, name: str, dtype: torch.dtype | None, run: Run) -> Iterable[Tensor]:
    """One tensor of the result, in pieces; a dtype of None is that of a tensor that holds no floating numbers."""
    plan, checked = merge.plan, _checked(run, name)
    replacement = plan.replaced.get(name)
    if replacement is not None:
        return cast_pieces(replacement, dtype or replacement.dtype, run=checked)
    header = _source(merge, name)
    changes = name in plan.updates or merge.base == "dequantized"
    if dtype is None or (not changes and TORCH_DTYPES[header.dtype] == dtype):
        return _bytes(header)
    weight = _mapped(header)
    if merge.base == "dequantized":
        weight = _as_trained(merge, name, weight, run)
    if name in plan.updates:
        return updated_pieces(weight, plan.updates[name], dtype, transposed=name in plan.transposed, run=checked)
    return cast_pieces(weight, dtype, run=checked)


def _bytes(header: TensorHeader) -> Iterator[Tensor]:
    """A tensor of the base as its file has it, byte for byte and some at a time."""
    with header.file.open("rb") as stream:
        stream.seek(header.start)
        left = header.stop - header.start
        while left:
            part = bytearray(stream.read(min(left, BYTES_AT_ONCE)))
            left -= len(part)
            yield torch.frombuffer(part, dtype=torch.uint8)


def _mapped(header: TensorHeader) -> Tensor:
    """A tensor of the base, which stays in its file; what is read of it leaves memory with it.

    The file is opened for each: as long as it is, all that was ever read of it counts as this process's memory.
    """
    with safe_open(header.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(header.name)
    return tensor


def _as_trained(merge: Merge, name: str, weight: Tensor, run: Run) -> Tensor:
    """A tensor of the base as a model in 4 bits computes with it."""
    dtype = merge.trained_dtype or merge.dtype
    if name not in merge.quantized or merge.storage is None:
        return weight.to(dtype)
    if name in merge.plan.transposed:
        return quantize_roundtrip(weight.T, merge.storage, dtype, run=run).T
    return quantize_roundtrip(weight, merge.storage, dtype, run=run)


def _checked(run: Run, name: str) -> Run:
    """Makes pieces as `run` does, and looks at each before it is given on."""

    def work_and_look(work: Callable[[slice], Tensor], spans: Iterable[slice]) -> Iterable[Tensor]:
        return run(lambda span: _finite(work(span), name), spans)

    return work_and_look


def _finite(piece: Tensor, name: str) -> Tensor:
    # The sum is quick, and finite where every number is, unless they are huge.
    if not bool(torch.isfinite(piece.sum())) and not bool(torch.isfinite(piece).all()):
        remedy = "Its numbers are too large for float16: use bfloat16." if piece.dtype == torch.float16 else None
        raise NonFiniteError(f"the merged tensor {name} holds NaN or infinity", remedy=remedy)
    return piece
