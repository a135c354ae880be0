"""The loss that tells good answers from bad ones where each stands alone with its label: KTO.

An answer is compared with how far the model is from its reference altogether: the mean, over the rows of a step, of the
difference of log-likelihoods of answers that belong to other prompts. All batches of a step on all ranks are compared
with the same number, so that it does not matter how rows are shared among them; nothing is learned through it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loraft.config.preference_section import PreferenceSection
from loraft.tasks.batches import Batch
from loraft.tasks.preference_loss import (
    CausalLMPreferenceLoss,
    PreferenceLoss,
    Seq2SeqPreferenceLoss,
    drawing_nothing,
)


class KTOLoss(PreferenceLoss):
    """The loss of answers that stand alone: each row counts by the weight of its label, however long it is.

    Attributes:
        kl: The difference of log-likelihoods that answers are compared with, in nats; 0 until a step tells it.
    """

    texts_a_row = 1
    compares_with_kl = True

    def with_decisions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The summed loss, and `[3, rows]`: the rewards, 1 where an answer is desirable, and the KL."""
        assert batch.desirable is not None, "collate_compared tells the labels"
        reference = self.before_training(batch)[:, 0]
        likely = self.likelihoods(batch)
        desirable, kl = batch.desirable, self.kl.clamp(min=0)
        losses, rewards = kto_losses(likely[:, 0], reference, desirable, kl, self.asked)
        if self.asked.sft_share:
            means = likely[:, 0] / self.lengths(batch, likely)[:, 0]
            losses = losses - self.asked.sft_share * means * desirable
        decided = [rewards.detach(), desirable.to(rewards), kl.to(rewards).expand_as(rewards)]
        return losses.sum(), torch.stack(decided)

    def summed_kl(self, batch: Batch) -> Tensor:
        """What the answers of other rows in `batch` add to the mean that a step is compared with; without a graph."""
        if batch.mismatched is None:
            return torch.zeros((), device=batch.input_ids.device)
        with torch.no_grad(), drawing_nothing(self.model):
            return (self.likelihoods(batch.mismatched) - self.before_training(batch.mismatched)).sum()

    @staticmethod
    def figures(decisions: Tensor) -> Mapping[str, float]:
        """Of `[3, rows]` the mean rewards of desirable and undesirable answers, how far apart they are, and the KL."""
        rewards, desirable, kl = decisions.double()
        kinds = {"desirable_reward": rewards[desirable == 1], "undesirable_reward": rewards[desirable == 0]}
        found = {name: of_kind.mean().item() for name, of_kind in kinds.items() if len(of_kind)}
        margin = {"margin": found["desirable_reward"] - found["undesirable_reward"]} if len(found) == 2 else {}
        return {**margin, **found, "kl": kl[0].item()}


class CausalLMKTOLoss(KTOLoss, CausalLMPreferenceLoss):
    """That of a decoder."""


class Seq2SeqKTOLoss(KTOLoss, Seq2SeqPreferenceLoss):
    """That of an encoder-decoder."""


def kto_losses(
    likely: Tensor, reference: Tensor, desirable: Tensor, kl: Tensor, asked: PreferenceSection
) -> tuple[Tensor, Tensor]:
    """The weighted loss of each answer, and its reward.

    Args:
        likely: `[rows]`, float32, the log-likelihood of each answer, in nats.
        reference: `[rows]`, that before training.
        desirable: `[rows]`, bool.
        kl: A scalar, what each difference of these is compared with, in nats, not below 0.
        asked: The numbers of the loss.

    Returns:
        `[rows]`, and `[rows]`.

    Source: with r = log π/π₀ and z₀ the KL, λ_D (1 − σ(β (r − z₀))) of a desirable answer and λ_U (1 − σ(β (z₀ − r)))
        of an undesirable one; Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8.
    """
    difference = likely - reference
    away = torch.where(desirable, kl - difference, difference - kl)
    weights = torch.where(desirable, asked.desirable_weight, asked.undesirable_weight)
    return weights * torch.sigmoid(asked.strength * away), asked.strength * difference
