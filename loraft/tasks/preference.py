"""Preferences: a decoder learns which of two answers to a prompt is the better one, or which answers are good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from loraft.rows.formats import Conversation, Record
from loraft.tasks.causal_lm import CausalLM, common_system_prompt
from loraft.tasks.compared_answers import ComparedAnswers, answer_to_give, stand_alone
from loraft.tasks.task import StarterFacts
from loraft.tokenization.examples import DatasetFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraft.config.sections import DataSection
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

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """Whether there are conversations, the system prompt of all of them, and whether answers stand alone."""
        answers = [answer_to_give(record) for record in records]
        conversations = not answers or any(isinstance(answer, Conversation) for answer in answers)
        return DatasetFacts(common_system_prompt(answers), conversations, unpaired=stand_alone(records))

    def renderer(self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts) -> CausalLMRenderer:
        """What renders both texts of a pair, or an answer by itself, as those of any decoder."""
        from loraft.tokenization.preference_rows import CausalLMPairRenderer, CausalLMUnpairedRenderer

        return (CausalLMUnpairedRenderer if facts.unpaired else CausalLMPairRenderer).for_tokenizer(
            tokenizer,
            chat_template=data.chat_template,
            conversations=facts.conversations,
            system_prompt=facts.system_prompt,
            plain=not facts.conversations,
            special_tokens_in_text=data.special_tokens_in_text,
        )

    @property
    def losses(self) -> tuple[type[PreferenceLoss], type[KTOLoss]]:
        """Those of the tokens of a text."""
        from loraft.tasks.kto_loss import CausalLMKTOLoss
        from loraft.tasks.preference_loss import CausalLMPreferenceLoss

        return CausalLMPreferenceLoss, CausalLMKTOLoss

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """Nothing of the rows has to be said."""
        return iter(())
