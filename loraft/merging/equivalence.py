"""Whether a merged model is the model that was trained: how far apart their outputs are, and what is too far.

The adapted model and the merged one read the same text, and compute in the dtype of the merged weights. A base that was
stored in 4 bits during training is stored so here, in the dtype that it was quantized from then; only its products are
in the dtype of the merge.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from loraft.adapters.effect import act_together, acting
from loraft.adapters.inject import AdaptedModel
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import ModelSection
from loraft.errors import ModelError, OutOfMemoryError, VerificationError
from loraft.figures import listed
from loraft.io.resources import memory_errors
from loraft.merging.calibration_text import LONGEST, Rows, built_in_rows, rows_for
from loraft.merging.prepare_merge import Merge
from loraft.merging.row_sums import RowSums, sums_of_merged
from loraft.models.base_files import as_model_names
from loraft.models.device import DTYPES, DeviceConfig, select_device
from loraft.models.hf_config import context_of
from loraft.models.load_model import LoadedModel, load_model
from loraft.models.modules import class_logits, decoder_inputs, wrapped_model
from loraft.models.packed_weights import PackedHeader, weight_headers
from loraft.models.quantize import compute_in, in_few_bits
from loraft.models.safetensors_index import TORCH_DTYPES

LARGEST_FLOAT32_DIFFERENCE = 1e-3
"""Two float32 models with the same weights differ by the order of their sums, and no logit by more than this."""
WORTH_A_WARNING = 0.1
"""The share of the adapter's effect that a merge may lose unsaid."""
NOISE = 1e-6
"""A KL divergence, in nats, that two runs of one model in 16 bits can have."""
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class OutputDifference:
    """How far one model's outputs are from another's.

    Attributes:
        max_abs: The largest difference of a logit.
        kl: KL(first ‖ second), the mean over all positions, in nats.
        top1_agreement: The share of positions with the same likeliest token.
    """

    max_abs: float
    kl: float
    top1_agreement: float
    positions: int


@dataclass(frozen=True)
class Verified:
    """A merged model measured by the adapted one.

    Attributes:
        merged: From adapted to merged.
        base: From adapted to the base without the adapter: the adapter's effect.
        rows: The text that they read.
        compared: `logits`, `class logits`, or `hidden states` of a model without a head.
        is_float32: Both models computed in float32.
        tensors: How many of the merged model were compared with the adapted one's; 0 where these are of another base.
        others: Those with other numbers, by their names.
    """

    merged: OutputDifference
    base: OutputDifference
    rows: Rows
    compared: str
    is_float32: bool
    tensors: int
    others: tuple[str, ...]


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of each position, in nats and float64: `[positions, vocab]` logits twice to `[positions]`.

    Source: Kullback and Leibler 1951: Σ p · (log p − log q).
    """
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def difference(first: Iterable[Tensor], second: Iterable[Tensor]) -> OutputDifference:
    """Compare two models' outputs, text by text: `[positions, vocab]` logits each, in the same order."""
    largest, kl, same, positions = 0.0, 0.0, 0, 0
    for whole_p, whole_q in zip(first, second, strict=True):
        if whole_p.shape != whole_q.shape:
            raise ValueError(f"outputs of {list(whole_p.shape)} and {list(whole_q.shape)} have no difference")
        for start in range(0, len(whole_p), ROWS_AT_ONCE):
            p, q = whole_p[start : start + ROWS_AT_ONCE], whole_q[start : start + ROWS_AT_ONCE]
            apart = float((p.float() - q.float()).abs().max())
            largest = apart if math.isnan(apart) else max(largest, apart)
            kl += float(kl_divergence(p, q).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            positions += len(p)
            if math.isnan(largest):
                return OutputDifference(math.nan, math.nan, same / positions, positions)
    if not positions:
        raise ValueError("a comparison of no positions")
    return OutputDifference(largest, max(kl / positions, 0.0), same / positions, positions)


WRONG = "This merge is wrong: please report it. `verified=False` writes it all the same."


def check_equivalence(found: Verified, *, is_as_trained: bool) -> tuple[str, ...]:
    """What to warn of, where a merged model and its base are so far from the adapted one.

    Raises:
        VerificationError: The merged model is not the adapted one.
    """
    merged, base, is_float32 = found.merged, found.base, found.is_float32
    remedy = "Use the adapter unmerged." if is_float32 else "`dtype='float32'` keeps what rounding to 16 bits loses."
    if not is_as_trained:
        remedy = "Merge into the base that the adapter was trained on: leave `base` out."
    if not math.isfinite(merged.max_abs) or not math.isfinite(base.max_abs):
        raise VerificationError("outputs of the models hold NaN or infinity; nothing was written", remedy=remedy)
    if is_float32 and is_as_trained and merged.max_abs > LARGEST_FLOAT32_DIFFERENCE:
        raise VerificationError(
            f"the merged model's logits differ from the adapted one's by up to {merged.max_abs:.3g}, "
            f"and in float32 by more than {LARGEST_FLOAT32_DIFFERENCE:g} they should not; nothing was written",
            remedy=WRONG,
        )
    if found.others:
        several = f"{len(found.others)} tensors" if len(found.others) > 1 else "one tensor"
        message = f"the merged model has other numbers than the adapted one in {several} of {found.tensors}"
        raise VerificationError(f"{message}: {listed(found.others)}; nothing was written", remedy=WRONG)
    if merged.kl > max(base.kl, NOISE):
        raise VerificationError(
            f"the merge lost more than it kept: KL(adapted ‖ merged) is {merged.kl:.3g}, and KL(adapted ‖ base), "
            f"the adapter's whole effect, is {base.kl:.3g}; nothing was written",
            remedy=f"{remedy} `verified=False` writes it all the same.",
        )
    if base.kl <= NOISE and base.max_abs > 0:
        return (
            f"the adapter changes very little on this text: no output by more than {base.max_abs:.3g}, KL(adapted ‖ "
            f"base) is {base.kl:.3g}; the merged model's outputs differ from the adapted one's by up to "
            f"{merged.max_abs:.3g}",
        )
    if base.kl <= NOISE:
        return ("the adapter changes nothing: with it and without it the base gives the same answers on this text",)
    if merged.kl > WORTH_A_WARNING * base.kl:
        return (
            f"the merge lost {100 * merged.kl / base.kl:.0f} % of the adapter's effect: KL(adapted ‖ merged) is "
            f"{merged.kl:.3g}, and KL(adapted ‖ base) is {base.kl:.3g}. {remedy}",
        )
    return ()


NOT_COMPARED = "Merge without comparing: `verified=False`."


def verify(merge: Merge, folder: Path, positions: int, progress: Callable[[int, int], None]) -> Verified:
    """Compare the adapters on their base with the merged model in `folder`, on so many positions where there is text.

    `progress` is told the positions that were read, and all there will be.

    Raises:
        ModelError: One of the two cannot be loaded or run here; merging without verification is then left.
        OutOfMemoryError: The device is too small for one of them.
    """

    def told(turn: int, done: int) -> None:
        progress(turn * positions + done, 3 * positions)

    try:
        with memory_errors("memory ran out while the two models were compared", remedy=NOT_COMPARED):
            adapted = _adapted(merge, positions, told)
            gc.collect()  # models hold cycles: without it two would be in memory
            weights = adapted.weights or _weights_of_files(merge)
            section = ModelSection(name_or_path=str(folder))
            loaded = load_model(section, _placement(merge.dtype), group=None, labels=merge.labels)
            for name, tensor in _in_no_file(loaded).items():
                tensor.copy_(adapted.in_no_file.get(name, tensor))
            outputs, compared = _outputs(merge, loaded.model, adapted.rows, positions, partial(told, 2))
            tensors, others = (weights.sums, weights.others(loaded.model)) if weights else ({}, [])
    except (ModelError, OutOfMemoryError) as error:
        raise type(error).several(replace(each, remedy=NOT_COMPARED) for each in error.problems) from error
    is_float32 = adapted.computes_in == merge.dtype == torch.float32
    apart = difference(adapted.outputs, outputs)
    return Verified(apart, adapted.base, adapted.rows, compared, is_float32, len(tensors), tuple(others))


@dataclass(frozen=True)
class _MeasuredAdapter:
    """What a merged model is compared with.

    Attributes:
        rows: What is read.
        base: How far the base's outputs are from the adapted model's.
        computes_in: The dtype of the products.
        in_no_file: What the base has made by itself.
        weights: Those that the merged model should have. None where the base is another than that of training, or was
            rounded once more than that of the merge: as it was loaded, or after it was dequantized.
    """

    rows: Rows
    outputs: list[Tensor]
    base: OutputDifference
    computes_in: torch.dtype
    in_no_file: dict[str, Tensor]
    weights: RowSums | None


def _adapted(merge: Merge, positions: int, told: Callable[[int, int], None]) -> _MeasuredAdapter:
    """Let the adapters act on their base, and the base alone, on text; then fold them in."""
    loaded, held_in, computes_in = _base_as_trained(merge)
    in_no_file = {name: tensor.clone() for name, tensor in _in_no_file(loaded).items()}
    adapted = _with_adapters(merge, loaded)
    longest = min(LONGEST, context_of(loaded.model.config, loaded.family) or LONGEST)
    if loaded.family.generates or merge.labels:
        sources = merge.target.metadata.sources if loaded.family.kind == "encoder_decoder" else None
        rows = rows_for(merge.adapters[0].files.folder, loaded.tokenizer, sources, longest)
    else:
        rows = built_in_rows(loaded.tokenizer, longest=longest)
    rows = rows.behind(list(merge.target.model.tokens[:longest]))
    outputs, _ = _outputs(merge, adapted.model, rows, positions, partial(told, 0))
    rows = rows.first(len(outputs))
    with acting(adapted.model, None) as model:
        base, _ = _outputs(merge, model, rows, positions, partial(told, 1))
    is_rounded = not in_few_bits(loaded.model) and torch.finfo(merge.dtype).eps > torch.finfo(held_in).eps
    plain = {header.dtype for header in merge.base.headers.values() if not isinstance(header, PackedHeader)}
    as_in_files = merge.storage is not None or {TORCH_DTYPES.get(each, held_in) for each in plain} <= {held_in}
    weights = None
    if merge.is_as_trained and as_in_files and not is_rounded:
        weights = sums_of_merged(adapted, merge.dtype, {held_in, computes_in})
    return _MeasuredAdapter(rows, outputs, difference(outputs, base), computes_in, in_no_file, weights)


def _weights_of_files(merge: Merge) -> RowSums | None:
    """Those of a base whose files have another dtype than the merge: loaded in it they were rounded once more.

    None where quantized weights are among them, or the base is not that of training.
    """
    if merge.storage is not None or merge.is_packed or not merge.is_as_trained:
        return None
    loaded = load_model(merge.target.model, _placement(torch.float32), group=None, labels=merge.labels)
    return sums_of_merged(_with_adapters(merge, loaded), merge.dtype, ())


def _with_adapters(merge: Merge, loaded: LoadedModel) -> AdaptedModel:
    """The adapters on a base, all of them acting with their weights."""
    names = {f"adapter-{number}": adapter for number, adapter in enumerate(merge.adapters, start=1)}
    adapted = load_adapters(loaded, {name: adapter.files.folder for name, adapter in names.items()})
    act_together(adapted.model, {name: adapter.weight for name, adapter in names.items()})
    return adapted


def _base_as_trained(merge: Merge) -> tuple[LoadedModel, torch.dtype, torch.dtype]:
    """The base as the adapters met it, the dtype that it is loaded in, and the one that it computes in.

    That is the merge's, where training leaves it open.
    """
    stored = merge.trained_storage
    held_in = merge.loaded_in if stored else merge.dtype
    placement, labels = _placement(held_in), merge.labels
    loaded = load_model(merge.target.model, placement, quantization=stored, group=None, labels=labels)
    if stored is None and not merge.is_packed:
        return loaded, held_in, held_in
    products = DTYPES.get(stored.compute_dtype, held_in) if stored else held_in
    # The merge has the rounding of products of their own in it, and of files to what they were quantized from.
    if (held_in == merge.dtype and not merge.is_packed) or products not in (held_in, torch.float32):
        return loaded, held_in, products
    compute_in(loaded.model, merge.dtype)
    return loaded, held_in, merge.dtype


def _in_no_file(loaded: LoadedModel) -> dict[str, Tensor]:
    """What a model makes by itself, rounded to the dtype that it is loaded in: tables of positions, a scale."""
    model, headers = loaded.model, weight_headers(loaded.folder, loaded.model)
    held = {*as_model_names(model, headers), *model.all_tied_weights_keys}
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: each.detach() for name, each in named if each.is_floating_point() and name not in held}


def _placement(dtype: torch.dtype) -> DeviceConfig:
    """The device that models run on here; the dtype is the merge's, whatever trains best."""
    return replace(select_device(ModelSection(name_or_path="any")), dtype=dtype)


def _outputs(
    merge: Merge, model: nn.Module, rows: Rows, positions: int, progress: Callable[[int], None]
) -> tuple[list[Tensor], str]:
    """Let a model read row after row, until there are enough positions.

    Returns:
        `[positions, width]` for each row, in float32 and on the CPU; and whether these are `logits`, `class logits` or
        `hidden states`.
    """
    device = next(model.parameters()).device
    dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
    # Adapters are float32 on a base of 16 bits: products run in the base's dtype, as in training.
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    texts, kind, done = list[Tensor](), "logits", 0
    for ids, target in zip_longest(rows.ids, rows.targets):
        read = torch.tensor([ids], device=device)
        said = torch.tensor([target], device=device) if target is not None else None
        with torch.no_grad(), autocast:
            found, kind = _output(merge, model, read, said)
        texts.append(found.float().cpu()[: positions - done])
        done += len(texts[-1])
        progress(done)
        if done == positions:
            break
    return texts, kind


def _output(merge: Merge, model: nn.Module, ids: Tensor, target: Tensor | None) -> tuple[Tensor, str]:
    """`[1, time]` to `[positions, width]`: logits of each token or of the classes, or hidden states; and which.

    Of an encoder-decoder, which has a `target` `[1, time]`, those of the decoder's tokens.
    """
    if merge.labels:
        config = wrapped_model(model).config
        ids[:, -1] = config.eos_token_id if config.is_encoder_decoder else ids[:, -1]  # where BART's classifier decides
        return class_logits(wrapped_model(model), merge.family, ids, torch.ones_like(ids)), "class logits"
    inputs = {"input_ids": ids} | ({} if target is None else {"decoder_input_ids": decoder_inputs(model, target)})
    output = model(**inputs)
    kind = "logits" if "logits" in output else "hidden states"
    found: Tensor = output.logits if kind == "logits" else output.last_hidden_state
    return found.reshape(-1, found.shape[-1]), kind
