"""The section `preference`: how a better answer is told from a worse one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from loraft.config.choices import Auto, PairLoss
from loraft.config.sections import NonNegativeFloat, PositiveFloat, Section

BETAS: Mapping[PairLoss, float] = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0, "cpo": 0.1}
"""What `beta` is where nobody says: the value of each paper's experiments, or of TRL."""
SFT_WEIGHTS: Mapping[PairLoss, float] = {"dpo": 0.0, "ipo": 0.0, "orpo": 1.0, "simpo": 0.0, "cpo": 1.0}
"""What `sft_weight` is where nobody says: 1 where the loss has such a term of its own."""
WITH_REFERENCE: frozenset[PairLoss] = frozenset({"dpo", "ipo"})
"""The losses that compare with the model as it was before training."""
SMOOTHED: frozenset[PairLoss] = frozenset({"dpo", "simpo", "cpo"})
"""The losses that take `label_smoothing`: those whose loss is that of a decision between two answers."""


class PreferenceSection(Section):
    """How a better answer is told from a worse one, of `task: preference`."""

    loss: PairLoss = "dpo"
    """dpo and ipo compare with the model as it was before training; orpo, simpo and cpo need no such reference."""
    beta: Auto | PositiveFloat = "auto"
    """How much the difference of the two answers counts: of dpo the greater, the nearer the model stays to what it was;
    of ipo the inverse of twice the difference that is aimed at; of orpo the weight of its odds ratio. auto is 2 for
    simpo and 0.1 for the others."""
    gamma: NonNegativeFloat = 0.5
    """The difference of rewards that simpo aims at. Not used by the other losses."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The share of pairs that are thought to be the wrong way around, of dpo, simpo and cpo. An evaluation measures the
    pairs as they stand."""
    sft_weight: Auto | NonNegativeFloat = "auto"
    """How much the negative log-likelihood of the better answer, a token of it on average, counts beside. auto is 1 for
    orpo and cpo, which have it of their own, and 0 for the others."""

    @property
    def strength(self) -> float:
        """`beta`, decided."""
        return BETAS[self.loss] if self.beta == "auto" else self.beta

    @property
    def sft_share(self) -> float:
        """`sft_weight`, decided."""
        return SFT_WEIGHTS[self.loss] if self.sft_weight == "auto" else self.sft_weight

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return self.loss in WITH_REFERENCE
