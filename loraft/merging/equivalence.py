"""Whether a merged model is the model that was trained: how far apart their outputs are, and what is too far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraft.dataset.build import prepare
from loraft.errors import DataError, LoraftError, VerificationError
from loraft.evaluation.eval_dataset import past_run
from loraft.io.paths import cache_folder
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
    """Rows of tokens.

    Attributes:
        ids: The tokens of each row.
        source: What they are, in a few words.
        notes: What a person should know, a sentence each.
        targets: What an encoder-decoder says to each of them, token by token; none where the rows are read alone.
    """

    ids: tuple[list[int], ...]
    source: str
    notes: tuple[str, ...] = ()
    targets: tuple[list[int], ...] = ()


def rows_for(
    adapter: Path, tokenizer: PreTrainedTokenizerBase, sources: SourceFormat | None = None, longest: int = LONGEST
) -> Rows:
    """The rows that the run of an adapter held out, followed by the built-in ones, should there be too few.

    Args:
        adapter: The adapter's folder; where it lies in a run or in one of its checkpoints, the run tells its data.
        tokenizer: The one that was trained with.
        sources: How an encoder-decoder's sources were rendered; None for a model that reads one text.
        longest: The most tokens of a row, and of a target.
    """
    built_in = built_in_rows(tokenizer, longest) if sources is None else built_in_pairs(tokenizer, sources, longest)
    try:
        run = past_run(adapter)
        if run is None or run.config.data.eval is None:
            return built_in
        notes = tuple(run.about_held_out())
        prepared = prepare(run.config, tokenizer, cache_folder())
        run.check_held_out(prepared.held_out)
        held_out = prepared.eval
    except (LoraftError, OSError) as error:
        reason = str(error).splitlines()[0]
        note = f"the run's held-out rows cannot be read, and {BUILT_IN} is used: {reason}"
        return replace(built_in, notes=(note,))
    ids = tuple(list(example.input_ids[:longest]) for example in held_out)
    targets = () if sources is None else tuple(list(example.labels[:longest]) for example in held_out)
    own = "the run's held-out rows"
    return Rows((*ids, *built_in.ids), own, notes, (*targets, *built_in.targets))


def built_in_rows(tokenizer: PreTrainedTokenizerBase, longest: int = LONGEST) -> Rows:
    """Prose, code and data in several languages, then customers' messages; over 10,000 tokens."""
    made = (list(tokenizer(text, verbose=False)["input_ids"])[:longest] for text in _texts())
    return Rows(tuple(ids for ids in made if ids), BUILT_IN)


def built_in_pairs(tokenizer: PreTrainedTokenizerBase, sources: SourceFormat, longest: int = LONGEST) -> Rows:
    """The built-in texts for an encoder-decoder: each is read, and said again.

    A tokenizer that needs to know languages, of which nobody says any, is left in those that it begins with.
    """
    try:
        renderer = Seq2SeqRenderer(
            tokenizer, prefix=sources.prefix, source_lang=sources.source_lang, target_lang=sources.target_lang
        )
    except DataError:
        rows = built_in_rows(tokenizer, longest)
        return replace(rows, targets=rows.ids)
    pairs = [renderer.render(Seq2SeqRecord(text, text)) for text in _texts()]
    made = renderer.examples(pairs, [BUILT_IN] * len(pairs))
    kept = [(pair.input_ids[:longest], pair.labels[:longest]) for pair in made if pair.input_ids]
    return Rows(tuple(ids for ids, _ in kept), BUILT_IN, targets=tuple(labels for _, labels in kept))


def _texts() -> Iterator[str]:
    yield from PASSAGES
    for row in tickets("eval"):
        messages = row["messages"]
        assert isinstance(messages, list)
        yield "\n".join(message["content"] for message in messages[1:])


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
        positions: How many positions there are.
    """

    max_abs: float
    kl: float
    top1_agreement: float
    positions: int


@dataclass(frozen=True)
class MergeCheck:
    """A merged model measured by the adapted one, and the adapter's effect beside it.

    Attributes:
        merged: From adapted to merged.
        base: From adapted to the base without the adapter.
    """

    merged: OutputDifference
    base: OutputDifference


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


def check_equivalence(fidelity: MergeCheck, *, is_float32: bool, is_as_trained: bool) -> tuple[str, ...]:
    """What to warn of.

    Args:
        fidelity: What was measured.
        is_float32: Both models computed in float32.
        is_as_trained: The adapter was merged into the base that it was trained on.

    Raises:
        VerificationError: The merged model is not the adapted one.
    """
    merged, base = fidelity.merged, fidelity.base
    remedy = _remedy(is_float32=is_float32, is_as_trained=is_as_trained)
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


def _remedy(*, is_float32: bool, is_as_trained: bool) -> str:
    if not is_as_trained:
        return "Merge into the base that the adapter was trained on: leave `base` out."
    if not is_float32:
        return "`dtype='float32'` keeps what rounding to 16 bits loses."
    return "Use the adapter unmerged."
