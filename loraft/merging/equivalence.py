"""Whether a merged model is the model that was trained: how far apart their outputs are, and what is too far.

The adapted model and the merged one read the same text, and compute in the dtype of the merged weights. A base that was
stored in 4 bits during training is stored so here, in the dtype that it was quantized from then; only its products are
in the dtype of the merge.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from loraft.adapters.effect import act_together, acting
from loraft.adapters.save_adapter import load_adapters
from loraft.config.sections import ModelSection
from loraft.dataset.build import prepare
from loraft.errors import DataError, LoraftError, ModelError, OutOfMemoryError, VerificationError
from loraft.evaluation.past_run import past_run
from loraft.io.paths import cache_folder
from loraft.io.resources import memory_errors
from loraft.merging.prepare_merge import Merge
from loraft.models.device import DTYPES, DeviceConfig, select_device
from loraft.models.hf_config import context_of
from loraft.models.load_model import LoadedModel, load_model
from loraft.models.modules import class_logits, decoder_inputs, wrapped_model
from loraft.models.quantize import compute_in
from loraft.rows.formats import Seq2SeqRecord
from loraft.rows.synthetic_tickets import tickets
from loraft.tasks.task import SourceFormat
from loraft.tokenization.plain_text_rows import Seq2SeqRenderer

LONGEST = 256
"""The most tokens of a row; fewer where a model has fewer positions."""
BUILT_IN = "built-in text"
PASSAGES = (
    "The river had been rising for three days before anyone thought to look at the bridge. By then the water was brown "
    "and fast, and the planks in the middle had begun to move.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. In plants it takes place in the "
    "chloroplasts, whose green pigment absorbs red and blue light best.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\n"
    "A: From 9:40 to 13:00 it is 3 hours and 20 minutes, and 5 minutes more: 3 hours and 25 minutes.",
    "Der Ausschuss hat am Dienstag beschlossen, die Frist bis zum 30. Juni zu verlängern. Anträge, die danach "
    "eingehen, werden erst im Herbst behandelt.",
    "La biblioteca abre de lunes a viernes, de nueve a ocho. Los sábados cierra a las dos y los domingos no abre.",
    '{"name": "kettle", "price": 24.9, "in_stock": true, "tags": ["kitchen", "steel"], "dimensions": {"height": 22}}',
    "Preheat the oven to 180 degrees. Beat the butter with the sugar until it is pale, add the eggs one at a time, "
    "then fold in the flour. Bake for 35 minutes and let it cool in the tin.",
    "In 1854 a physician marked on a map of the city where each of the dead had lived. The marks gathered around one "
    "pump, and when its handle was taken away the outbreak ended.",
)


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, and where they are from; an encoder-decoder says its `targets` to them."""

    ids: tuple[list[int], ...]
    source: str
    notes: tuple[str, ...] = ()
    targets: tuple[list[int], ...] = ()

    def behind(self, ids: list[int]) -> Rows:
        """The same behind a row of `ids`, if there are any; an encoder-decoder says them again."""
        if not ids:
            return self
        return replace(self, ids=(ids, *self.ids), targets=(ids, *self.targets) if self.targets else ())


def rows_for(adapter: Path, tokenizer: Tokenizer, sources: SourceFormat | None = None, longest: int = LONGEST) -> Rows:
    """The rows that the run of an adapter held out, followed by the built-in ones, should there be too few.

    The run tells its data, where the adapter's folder lies in one or in one of its checkpoints. With `sources` the rows
    are pairs, for an encoder-decoder.
    """
    built_in = built_in_rows(tokenizer, sources, longest)
    try:
        run = past_run(adapter)
        if run is None or run.config.data.eval is None:
            return built_in
        notes = tuple(run.about_held_out())
        prepared = prepare(run.config, tokenizer, cache_folder())
        run.check_held_out(prepared.held_out)
    except (LoraftError, OSError) as error:
        note = f"the run's held-out rows cannot be read, and {BUILT_IN} is used: {str(error).splitlines()[0]}"
        return replace(built_in, notes=(note,))
    ids = [list(example.input_ids[:longest]) for example in prepared.eval]
    targets = [list(example.labels[:longest]) for example in prepared.eval] if sources is not None else []
    return Rows((*ids, *built_in.ids), "the run's held-out rows", notes, (*targets, *built_in.targets))


def built_in_rows(tokenizer: Tokenizer, sources: SourceFormat | None = None, longest: int = LONGEST) -> Rows:
    """Prose, code and data in several languages, then customers' messages; over 10,000 tokens.

    An encoder-decoder, which has `sources`, reads each and says it again. A tokenizer that needs to know languages, of
    which nobody says any, is left in those that it begins with.
    """
    told = [cast("Sequence[dict[str, str]]", row["messages"])[1:] for row in tickets("eval")]
    texts = [*PASSAGES, *("\n".join(message["content"] for message in messages) for messages in told)]
    try:
        renderer = None if sources is None else Seq2SeqRenderer(tokenizer, **vars(sources))
    except DataError:
        renderer = None
    if renderer is None:
        made = (list(tokenizer(text, verbose=False)["input_ids"])[:longest] for text in texts)
        ids = tuple(row for row in made if row)
        return Rows(ids, BUILT_IN, targets=() if sources is None else ids)
    pairs = renderer.examples([renderer.render(Seq2SeqRecord(text, text)) for text in texts], [BUILT_IN] * len(texts))
    kept = [pair for pair in pairs if pair.input_ids]
    targets = tuple(pair.labels[:longest] for pair in kept)
    return Rows(tuple(pair.input_ids[:longest] for pair in kept), BUILT_IN, targets=targets)


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
    """

    merged: OutputDifference
    base: OutputDifference
    rows: Rows
    compared: str
    is_float32: bool


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


def check_equivalence(
    merged: OutputDifference, base: OutputDifference, *, is_float32: bool, is_as_trained: bool
) -> tuple[str, ...]:
    """What to warn of, where a merged model and its base are so far from the adapted one.

    Raises:
        VerificationError: The merged model is not the adapted one.
    """
    remedy = "Use the adapter unmerged." if is_float32 else "`dtype='float32'` keeps what rounding to 16 bits loses."
    if not is_as_trained:
        remedy = "Merge into the base that the adapter was trained on: leave `base` out."
    if not math.isfinite(merged.max_abs) or not math.isfinite(base.max_abs):
        raise VerificationError("outputs of the models hold NaN or infinity; nothing was written", remedy=remedy)
    if is_float32 and is_as_trained and merged.max_abs > LARGEST_FLOAT32_DIFFERENCE:
        raise VerificationError(
            f"the merged model's logits differ from the adapted one's by up to {merged.max_abs:.3g}, "
            f"and in float32 by more than {LARGEST_FLOAT32_DIFFERENCE:g} they should not; nothing was written",
            remedy="This merge is wrong: please report it. `verified=False` writes it all the same.",
        )
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
            rows, adapted, base, computes_in = _adapted_and_base(merge, positions, told)
            gc.collect()  # models hold cycles: without it two would be in memory
            section = ModelSection(name_or_path=str(folder))
            loaded = load_model(section, _placement(merge.dtype), group=None, labels=merge.labels)
            outputs, compared = _outputs(merge, loaded.model, rows, positions, partial(told, 2))
    except (ModelError, OutOfMemoryError) as error:
        raise type(error).several(replace(each, remedy=NOT_COMPARED) for each in error.problems) from error
    is_float32 = computes_in == merge.dtype == torch.float32
    return Verified(difference(adapted, outputs), base, rows, compared, is_float32)


def _adapted_and_base(
    merge: Merge, positions: int, told: Callable[[int, int], None]
) -> tuple[Rows, list[Tensor], OutputDifference, torch.dtype]:
    """What is read, the adapted model's outputs, how far the base's are from them, and the dtype of the products."""
    loaded, computes_in = _base_as_trained(merge)
    names = {f"adapter-{number}": adapter for number, adapter in enumerate(merge.adapters, start=1)}
    adapted = load_adapters(loaded, {name: adapter.files.folder for name, adapter in names.items()})
    act_together(adapted.model, {name: adapter.weight for name, adapter in names.items()})
    longest = min(LONGEST, context_of(loaded.model.config, loaded.family) or LONGEST)
    if loaded.family.generates or merge.labels:
        sources = merge.target.metadata.sources if loaded.family.kind == "encoder_decoder" else None
        rows = rows_for(merge.adapters[0].files.folder, loaded.tokenizer, sources, longest)
    else:
        rows = built_in_rows(loaded.tokenizer, longest=longest)
    rows = rows.behind(list(merge.target.model.tokens[:longest]))
    outputs, _ = _outputs(merge, adapted.model, rows, positions, partial(told, 0))
    with acting(adapted.model, None) as model:
        base, _ = _outputs(merge, model, rows, positions, partial(told, 1))
    return rows, outputs, difference(outputs, base), computes_in


def _base_as_trained(merge: Merge) -> tuple[LoadedModel, torch.dtype]:
    """The base as the adapters met it, and the dtype that it computes in: the merge's, where that is left open."""
    stored = merge.trained_storage
    held_in = (merge.trained_dtype or merge.dtype) if stored or merge.is_packed else merge.dtype
    placement, labels = _placement(held_in), merge.labels
    loaded = load_model(merge.target.model, placement, quantization=stored, group=None, labels=labels)
    if stored is None and not merge.is_packed:
        return loaded, held_in
    products = DTYPES.get(stored.compute_dtype, held_in) if stored else held_in
    if held_in == merge.dtype or products != held_in:  # products of their own: the merge has their rounding in it
        return loaded, products
    compute_in(loaded.model, merge.dtype)
    return loaded, merge.dtype


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
