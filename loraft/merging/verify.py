"""A merge from beginning to end, and its proof: the adapted model and the merged one read the same text.

What is too far apart is `fidelity`'s to say.

They compute in the dtype of the merged weights. A base that was stored in 4 bits during training is stored so here, in
the dtype that it was quantized from then; only its products are in the dtype of the merge.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn

from loraft.adapters.effect import act_together, acting
from loraft.adapters.model_card import shown
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import ModelSection
from loraft.errors import ModelError, OutOfMemoryError
from loraft.io.resources import memory_errors
from loraft.merging.equivalence import (
    LONGEST,
    MergeCheck,
    OutputDifference,
    Rows,
    built_in_rows,
    check_equivalence,
    difference,
    rows_for,
)
from loraft.merging.merge_report import MergeReport, explain_base
from loraft.merging.prepare_merge import Merge
from loraft.merging.write_weights import merged_folder, write_company, write_report, write_weights
from loraft.models.device import DTYPES, DeviceConfig, select_device
from loraft.models.hf_config import context_of
from loraft.models.load_model import LoadedModel, load_model
from loraft.models.modules import class_logits, decoder_inputs, wrapped_model
from loraft.models.quantize import compute_in
from loraft.models.registry import FAMILIES

NOT_COMPARED = "Merge without comparing: `verified=False`."
LEAST_POSITIONS = 256


@dataclass(frozen=True)
class Verified:
    """What was measured.

    Attributes:
        fidelity: The figures.
        rows: The text that they were measured on.
        compared: `logits`, `class logits`, or `hidden states` of a model without a head.
        is_float32: Both models computed in float32.
    """

    fidelity: MergeCheck
    rows: Rows
    compared: str
    is_float32: bool


def verify(
    merge: Merge, folder: Path, *, positions: int = LEAST_POSITIONS, progress: Callable[[int, int], None]
) -> Verified:
    """Compare the adapters on their base with the merged model in `folder`.

    Args:
        merge: What was merged.
        folder: The merged model, as transformers loads it.
        positions: On how many positions at least, as far as there is text.
        progress: Is told the positions that were read, and all there will be.

    Raises:
        ModelError: One of the two cannot be loaded or run here; merging without verification is then left.
        OutOfMemoryError: The device is too small for one of them.
    """

    def told(turn: int, done: int) -> None:
        progress(turn * positions + done, 3 * positions)

    try:
        with memory_errors("memory ran out while the two models were compared", remedy=NOT_COMPARED):
            first = _adapted_and_base(merge, positions, told)
            gc.collect()  # models hold cycles: without it two would be in memory
            section = ModelSection(name_or_path=str(folder))
            merged = load_model(section, _placement(merge.dtype), among=FAMILIES, labels=merge.labels)
            outputs = _outputs(merge, merged.model, first.rows, positions, lambda done: told(2, done))
    except (ModelError, OutOfMemoryError) as error:
        raise type(error).several(replace(each, remedy=NOT_COMPARED) for each in error.problems) from error
    fidelity = MergeCheck(difference(first.adapted.texts, outputs.texts), first.base)
    is_float32 = first.computes_in == merge.dtype == torch.float32
    return Verified(fidelity, first.rows, outputs.kind, is_float32)


@dataclass(frozen=True, eq=False)
class _First:
    """What stays of the adapted model.

    Attributes:
        rows: What was read.
        adapted: Its outputs.
        base: How far the outputs without the adapters are from them.
        computes_in: The dtype of its products.
    """

    rows: Rows
    adapted: _Outputs
    base: OutputDifference
    computes_in: torch.dtype


def _adapted_and_base(merge: Merge, positions: int, progress: Callable[[int, int], None]) -> _First:
    loaded, computes_in = _base_as_trained(merge)
    names = {f"adapter-{number}": adapter for number, adapter in enumerate(merge.adapters, start=1)}
    adapted = load_adapters(loaded, {name: adapter.files.folder for name, adapter in names.items()})
    act_together(adapted.model, {name: adapter.weight for name, adapter in names.items()})
    rows = _rows(merge, loaded)
    outputs = _outputs(merge, adapted.model, rows, positions, lambda done: progress(0, done))
    with acting(adapted.model, None) as model:
        base = _outputs(merge, model, rows, positions, lambda done: progress(1, done))
    return _First(rows, outputs, difference(outputs.texts, base.texts), computes_in)


def _rows(merge: Merge, loaded: LoadedModel) -> Rows:
    """What the two models read: the rows that were held out, where they generate, or the built-in ones."""
    longest = min(LONGEST, context_of(loaded.model.config, loaded.family) or LONGEST)
    if not loaded.family.generates and not merge.labels:
        return built_in_rows(loaded.tokenizer, longest)
    sources = merge.target.metadata.sources if loaded.family.kind == "encoder_decoder" else None
    return rows_for(merge.adapters[0].files.folder, loaded.tokenizer, sources, longest)


def _base_as_trained(merge: Merge) -> tuple[LoadedModel, torch.dtype]:
    """The base as the adapters met it, and the dtype that it computes in: the merge's, where that is left open."""
    stored = merge.trained_storage
    held_in = (merge.trained_dtype or merge.dtype) if stored else merge.dtype
    placement, labels = _placement(held_in), merge.labels
    loaded = load_model(merge.target.model, placement, quantization=stored, among=FAMILIES, labels=labels)
    if stored is None:
        return loaded, held_in
    products = DTYPES.get(stored.compute_dtype, held_in)
    if held_in == merge.dtype or products != held_in:  # products of their own: the merge has their rounding in it
        return loaded, products
    compute_in(loaded.model, merge.dtype)
    return loaded, merge.dtype


def _placement(dtype: torch.dtype) -> DeviceConfig:
    """The device that models run on here; the dtype is the merge's, whatever trains best."""
    return replace(select_device(ModelSection(name_or_path="any")), dtype=dtype)


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What a model made of the rows.

    Attributes:
        texts: `[positions, width]` for each row, in float32 and on the CPU.
        kind: `logits`, `class logits` or `hidden states`.
    """

    texts: list[Tensor]
    kind: str


def _outputs(merge: Merge, model: nn.Module, rows: Rows, positions: int, progress: Callable[[int], None]) -> _Outputs:
    """Let a model read row after row, until there are enough positions."""
    device = next(model.parameters()).device
    dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
    texts, kind, done = [], "logits", 0
    for ids, target in zip_longest(rows.ids, rows.targets):
        read = torch.tensor([ids], device=device)
        said = torch.tensor([target], device=device) if target is not None else None
        with torch.no_grad(), _products_in(dtype, device.type):
            found, kind = _output(merge, model, read, said)
        texts.append(found.float().cpu()[: positions - done])
        done += len(texts[-1])
        progress(done)
        if done == positions:
            break
    return _Outputs(texts, kind)


def _products_in(dtype: torch.dtype, device: str) -> AbstractContextManager[object]:
    """Adapters are float32 on a base of 16 bits: products run in the base's dtype, as in training."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)


def _output(merge: Merge, model: nn.Module, ids: Tensor, target: Tensor | None) -> tuple[Tensor, str]:
    """`[1, time]` to `[positions, width]`: logits of each token or of the classes, or hidden states; and which.

    Of an encoder-decoder, which has a `target` `[1, time]`, those of the decoder's tokens.
    """
    if merge.labels:
        return class_logits(wrapped_model(model), merge.family, ids, torch.ones_like(ids)), "class logits"
    inputs = {"input_ids": ids}
    if target is not None:
        inputs["decoder_input_ids"] = decoder_inputs(model, target)
    output = model(**inputs)
    kind = "logits" if "logits" in output else "hidden states"
    found: Tensor = output.logits if kind == "logits" else output.last_hidden_state
    return found.reshape(-1, found.shape[-1]), kind


def merge_and_verify(
    merge: Merge, out: Path, *, positions: int | None, overwrite: bool, progress: Callable[[str, int, int], None]
) -> MergeReport:
    """Write the merged model to `out`, if it is the adapted one.

    Args:
        merge: What is merged.
        out: The folder that appears.
        positions: On how many positions the two models are compared at least; None compares nothing.
        overwrite: Replace the merged model that `out` holds.
        progress: Is told what goes on, how far it is, and how far it goes.

    Raises:
        RunFolderError: `out` is taken, or lies where the base or an adapter does.
        ResourceError: The disk is too small.
        ModelError: The models cannot be run here, and so not compared.
        RunError: The merged model is not the adapted one, or memory or disk ran out; `out` is as it was.
    """
    with merged_folder(merge, out, overwrite=overwrite) as staging:
        began = monotonic()
        size = write_weights(merge, staging, partial(progress, "bytes merged"))
        seconds = monotonic() - began
        write_company(merge, staging)
        found: Verified | None = None
        warnings: tuple[str, ...] = ()
        if positions is not None:
            found = verify(merge, staging, positions=positions, progress=partial(progress, "positions compared"))
            limits = {"is_float32": found.is_float32, "is_as_trained": merge.is_as_trained}
            warnings = (*found.rows.notes, *check_equivalence(found.fidelity, **limits))
        elif merge.plan.changes_nothing:
            warnings = ("the adapter changes nothing: every update is zero",)
        report = _report(merge, out, found, warnings, size, seconds)
        write_report(staging, report)
    return report


def _report(
    merge: Merge, out: Path, found: Verified | None, warnings: tuple[str, ...], size: int, seconds: float
) -> MergeReport:
    fidelity = found.fidelity if found else None
    return MergeReport(
        out=out,
        base="dequantized" if merge.storage else "original",
        dtype=merge.dtype_name,
        max_abs_logit_difference=fidelity.merged.max_abs if fidelity else None,
        kl_adapted_merged=fidelity.merged.kl if fidelity else None,
        kl_adapted_base=fidelity.base.kl if fidelity else None,
        top1_agreement=fidelity.merged.top1_agreement if fidelity else None,
        positions=fidelity.merged.positions if fidelity else 0,
        measured_on=found.rows.source if found else None,
        compared=found.compared if found else None,
        base_model=shown(merge.target.model.section.name_or_path),
        architecture=merge.architecture,
        why_this_base=explain_base("dequantized" if merge.storage else "original", is_as_trained=merge.is_as_trained),
        adapters=tuple({"name": adapter.name, "weight": adapter.weight} for adapter in merge.adapters),
        changed_tensors=len({*merge.plan.updates, *merge.plan.replaced}),
        untied=tuple(merge.plan.untied),
        weights_bytes=size,
        merge_seconds=round(seconds, 3),
        verified=found is not None,
        warnings=warnings,
        labels=merge.labels,
    )
