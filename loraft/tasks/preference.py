"""Preferences: a decoder learns which of two answers to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from loraft.config.choices import Method, TaskName
from loraft.figures import counted
from loraft.rows.formats import Conversation, LanguagePair, PreferencePair, PromptCompletion, Record
from loraft.rows.preferences import to_pair
from loraft.tasks.causal_lm import CausalLM, common_system_prompt
from loraft.tasks.task import LOSS, Before, MetricFacts, Reference, StarterFacts, TaskMetrics, TokenSpan
from loraft.tokenization.examples import IGNORED, DatasetFacts, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.rows.row import Row
    from loraft.tasks.loss import TaskLoss
    from loraft.tokenization.preference_rows import PreferenceRenderer

ONE_SIDED = 0.75
"""Where one side is longer in a greater share of pairs, it is told."""
PAIR_METRICS: Mapping[str, MetricFacts] = {
    "accuracy": MetricFacts("share"),
    "margin": MetricFacts("number"),
    "chosen_reward": MetricFacts("number"),
    "rejected_reward": MetricFacts("number"),
}


class Preference(CausalLM):
    """A decoder learns which of two answers is better; prompts and answers are those of any decoder."""

    name = "preference"
    summary = "A decoder learns which of two answers is better."
    formats = ("preferences",)
    unit = "pair"
    metrics = TaskMetrics(always={**LOSS, **PAIR_METRICS}, offered={}, default=())
    balances_routers = False
    joins_prompts = False
    compares_answers = True
    texts_a_row = 2
    rate_share = 0.1
    starter_rows = ("data/train.jsonl", "preferences")

    def record(self, row: Row, row_format: str, columns: Mapping[str, str], languages: LanguagePair) -> PreferencePair:
        """The two answers that a row has, each behind its prompt.

        Raises:
            DataError: A field is missing, empty or of the wrong type; it is named with file and line.
        """
        return to_pair(row, columns)

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """Whether there are conversations, and the system prompt that all of them begin with."""
        chosen = [record.chosen for record in records if isinstance(record, PreferencePair)]
        conversations = not chosen or any(isinstance(record, Conversation) for record in chosen)
        return DatasetFacts(common_system_prompt(chosen), conversations)

    def renderer(
        self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts
    ) -> PreferenceRenderer:
        """What renders both texts of a pair as those of any decoder."""
        from loraft.tokenization.preference_rows import PreferenceRenderer

        made = PreferenceRenderer.for_tokenizer(
            tokenizer,
            chat_template=data.chat_template,
            conversations=facts.conversations,
            system_prompt=facts.system_prompt,
            plain=not facts.conversations,
            special_tokens_in_text=data.special_tokens_in_text,
        )
        assert isinstance(made, PreferenceRenderer), "it is made of its own class"
        return made

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The prompt, and the better answer."""
        assert isinstance(record, PreferencePair), "the task's own records"
        chosen = record.chosen
        if isinstance(chosen, PromptCompletion):
            return Reference(chosen.prompt, chosen.completion)
        first = next(place for place, turn in enumerate(chosen.messages) if turn.train)
        return Reference(chosen.messages[:first], chosen.messages[first].content)

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The two texts, with what of each is compared."""
        for name, text in zip(("chosen", "rejected"), example.texts, strict=True):
            yield TokenSpan(name, text.input_ids, [False, *(label != IGNORED for label in text.labels[1:])])

    def read_by(self, stack: str, example: Example) -> Sequence[int]:
        """The two texts."""
        return [len(text.input_ids) for text in example.texts]

    def notes_on(self, examples: Sequence[Example]) -> Iterator[str]:
        """Which answers are the longer ones: where one side is, a model may learn no more than that."""
        answers = [[text.trained for text in example.texts] for example in examples]
        longer, shorter = (sum((a - b) * sign > 0 for a, b in answers) for sign in (1, -1))
        if answers:
            chosen, rejected = (sum(each) / len(answers) for each in zip(*answers, strict=True))
            counts = f"longer in {longer:,} of {counted(len(answers), 'pair')} and shorter in {shorter:,}"
            yield f"the chosen answer is {counts}: it has {chosen:.1f} tokens on average, the other {rejected:.1f}"
        if max(longer, shorter) > ONE_SIDED * len(answers):
            yield "one side is mostly the longer one: look whether length is learned; ipo, orpo and simpo compare means"

    @property
    def loss(self) -> type[TaskLoss]:
        """The loss of pairs."""
        from loraft.tasks.preference_loss import PreferenceLoss

        return PreferenceLoss

    @property
    def evaluated_as(self) -> TaskName:
        """That of any decoder: rows of one answer each tell whether it still answers."""
        return "causal_lm"

    def weight_of(self, example: Example) -> int:
        """Each pair counts the same, however long its answers are."""
        return 1

    def settled(self, loss: TaskLoss, config: RunConfig, before: Before) -> TaskLoss:
        """The loss that the section `preference` asks for."""
        from loraft.tasks.preference_loss import PreferenceLoss

        assert isinstance(loss, PreferenceLoss), "the task's own loss"
        loss.asked, loss.before = config.preference, before
        return loss

    def has_reference(self, config: RunConfig) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return config.preference.has_reference

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """Nothing of the rows has to be said."""
        return iter(())

    def starter_loss(self, method: Method) -> Iterator[tuple[str, object, str]]:
        """The loss, one without a reference where none is kept."""
        if method == "full":
            yield "preference.loss", "orpo", "orpo needs no reference; dpo has one, beside an adapter alone."
        else:
            yield "preference.loss", "dpo", "dpo stays near the base; ipo, orpo, simpo and cpo are the others."

    def facts_for_card(self, config: RunConfig, count: int) -> Mapping[str, str]:
        """How many tokens were compared, and by which loss."""
        asked = config.preference
        return {"compared tokens": f"{count:,} (loss {asked.loss}, beta {asked.strength:g})"}

    def summary_of_result(self, result: Mapping[str, object]) -> Mapping[str, object]:
        """A training result as a person reads it: of pairs there is no perplexity."""
        return {key: value for key, value in result.items() if key != "perplexity"}
