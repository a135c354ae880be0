"""Preferences: a decoder learns which of two answers to a prompt is the better one, or which answers are good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraft.tasks.causal_lm import CausalLM
from loraft.tasks.compared_answers import ComparedAnswers
from loraft.tasks.task import StarterFacts
from loraft.tokenization.examples import DatasetFacts

if TYPE_CHECKING:
    from loraft.tasks.kto_loss import KTOLoss
    from loraft.tasks.preference_loss import PreferenceLoss
    from loraft.tokenization.causal_lm_rows import CausalLMRenderer


class Preference(ComparedAnswers, CausalLM):
    """A decoder learns which answers are better; they are those of any decoder."""

    name = "preference"
    summary = "A decoder learns which of two answers is better."
    one = CausalLM()
    balances_routers = False
    joins_prompts = False

    def renderer_class(self, facts: DatasetFacts) -> type[CausalLMRenderer]:
        """What renders both texts of a pair, or an answer by itself, as those of any decoder."""
        from loraft.tokenization.preference_rows import CausalLMPairRenderer, CausalLMUnpairedRenderer

        return CausalLMUnpairedRenderer if facts.unpaired else CausalLMPairRenderer

    @property
    def losses(self) -> tuple[type[PreferenceLoss], type[KTOLoss]]:
        """Those of the tokens of a text."""
        from loraft.tasks.kto_loss import CausalLMKTOLoss
        from loraft.tasks.preference_loss import CausalLMPreferenceLoss

        return CausalLMPreferenceLoss, CausalLMKTOLoss

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """Nothing of the rows has to be said."""
        return iter(())
