"""Whether a merged model is the model that was trained: how far apart their outputs are, and what is too far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from loraft.errors import VerificationError

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
