"""The losses that tell a better answer from a worse one.

Each is a function of how likely the two answers are, given their prompt: of the sum of their tokens' log-likelihoods,
or of the mean. The sum over pairs is what a batch gives, and the loop divides it by the pairs of its whole window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from loraft.config.preference_section import PreferenceSection
from loraft.figures import in_order
from loraft.kernels.transfer import to_device
from loraft.tasks.batches import Batch, collate_compared, collate_pairs, collate_texts
from loraft.tasks.loss import CausalLMLoss, LMLoss, Seq2SeqLMLoss
from loraft.tasks.task import Before

ON_AVERAGE = frozenset({"ipo", "orpo", "simpo"})
"""The losses that compare the mean of an answer's tokens, so that its length does not count."""


class PreferenceLoss(LMLoss):
    """The loss of pairs of answers: each pair counts the same, however long its answers are.

    It stands before the loss of one answer, which tells how likely the tokens of an answer are.

    Attributes:
        texts_a_row: How many texts of a row are compared.
    """

    texts_a_row: ClassVar[int] = 2

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.asked = PreferenceSection()
        self.before: Before | None = None

    def weight(self, batch: Batch) -> float:
        """What the summed loss of a batch is divided by: its rows."""
        return len(batch.text_targets) // self.texts_a_row

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of the rows of `batch`: a float32 scalar."""
        return self.with_decisions(batch)[0]

    def with_decisions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The summed loss, and `[2, pairs]`: the rewards of the better answers and of the worse ones."""
        losses, rewards = self.of_pairs(batch)
        return losses.sum(), rewards.detach().T

    def of_pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`[pairs]`, the loss of each, and `[pairs, 2]`, the rewards of its two answers."""
        reference = self.before_training(batch) if self.asked.has_reference else None
        likely = self.likelihoods(batch)
        smoothing = self.asked.label_smoothing if self.model.training else 0.0
        return pair_losses(likely, self.lengths(batch, likely), reference, self.asked, smoothing)

    def likelihoods(self, batch: Batch) -> Tensor:
        """`[rows, texts]`, float32: the log-likelihood of each answer, in nats, of a pair the better one first."""
        return -self.of_texts(batch).view(-1, self.texts_a_row)

    def lengths(self, batch: Batch, like: Tensor) -> Tensor:
        """`[rows, texts]`, the tokens that are compared; the host waits for no copy of them."""
        lengths = torch.tensor(batch.text_targets, dtype=like.dtype)
        return to_device(lengths, like.device).view(-1, self.texts_a_row)

    def before_training(self, batch: Batch) -> Tensor:
        """The same of the model before training, which draws nothing: read from the batch, or computed."""
        if batch.reference is not None:
            return batch.reference
        assert self.before is not None, "the task says what the model was"
        with torch.no_grad(), self.before(), drawing_nothing(self.model):
            return self.likelihoods(batch)

    @staticmethod
    def figures(decisions: Tensor) -> Mapping[str, float]:
        """Of `[2, pairs]`, the rewards of both answers: the share of pairs in the right order, and mean rewards."""
        chosen, rejected = decisions.double()
        return {
            "accuracy": fmean(map(in_order, chosen.tolist(), rejected.tolist())),
            "margin": (chosen - rejected).mean().item(),
            "chosen_reward": chosen.mean().item(),
            "rejected_reward": rejected.mean().item(),
        }


class CausalLMPreferenceLoss(PreferenceLoss, CausalLMLoss):
    """That of a decoder."""

    collate = staticmethod(partial(collate_compared, collate_texts))


class Seq2SeqPreferenceLoss(PreferenceLoss, Seq2SeqLMLoss):
    """That of an encoder-decoder, which answers a source with one target or the other."""

    collate = staticmethod(partial(collate_compared, collate_pairs))


@contextmanager
def drawing_nothing(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout: what is compared with is one number for each text."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def pair_losses(
    likely: Tensor, lengths: Tensor, reference: Tensor | None, asked: PreferenceSection, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss of each pair, and the rewards that it gives its two answers.

    Args:
        likely: `[pairs, 2]`, float32, the log-likelihood of the better and of the worse answer, in nats.
        lengths: `[pairs, 2]`, their tokens.
        reference: `[pairs, 2]`, their log-likelihood before training; None where the loss does not compare with it.
        asked: Which loss, and its numbers.
        smoothing: The share of pairs that are thought to be the wrong way around.

    Returns:
        `[pairs]`, and `[pairs, 2]`.

    Sources, h being the difference of what is compared, β times it the difference of rewards:
        dpo: −log σ(β h), h of log π/π₀; Rafailov et al. 2023 (arXiv:2305.18290), equation 7. With smoothing ε
            −(1 − ε) log σ(β h) − ε log σ(−β h); Mitchell 2023.
        ipo: (h − 1/2β)², h of log π/π₀ a token; Azar et al. 2023 (arXiv:2310.12036), equation 17.
        cpo: as dpo with a reference that gives all answers alike; Xu et al. 2024 (arXiv:2401.08417), equation 3.
        simpo: −log σ(β h − γ), h of log π a token; Meng et al. 2024 (arXiv:2405.14734), equation 6.
        orpo: −β log σ(h), h of the log odds of the mean token; Hong et al. 2024 (arXiv:2403.07691), equation 7.
    """
    beta, means = asked.strength, likely / lengths
    compared = likely if reference is None else likely - reference
    if asked.loss in ON_AVERAGE:
        compared = compared / lengths
    difference = compared[:, 0] - compared[:, 1]
    if asked.loss == "ipo":
        losses = (difference - 1 / (2 * beta)) ** 2
    elif asked.loss == "orpo":
        odds = means - _log_of_the_rest(means)
        losses = -beta * logsigmoid(odds[:, 0] - odds[:, 1])
    else:
        wanted = beta * difference - (asked.gamma if asked.loss == "simpo" else 0.0)
        losses = -(1 - smoothing) * logsigmoid(wanted) - smoothing * logsigmoid(-wanted)
    if asked.sft_share:
        losses = losses - asked.sft_share * means[:, 0]
    return losses, beta * compared


def _log_of_the_rest(log_share: Tensor) -> Tensor:
    """log(1 − exp(x)) for x ≤ 0, finite where x rounds to 0.

    Source: Mächler 2012, Accurately computing log(1 − exp(−|a|)).
    """
    below = log_share.clamp(max=-torch.finfo(log_share.dtype).tiny)
    near = below > -math.log(2)
    of_near = torch.log(-torch.expm1(torch.where(near, below, -1.0)))
    return torch.where(near, of_near, torch.log1p(-torch.exp(torch.where(near, -1.0, below))))
