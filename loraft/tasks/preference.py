"""Preferences: a decoder learns which of two answers to a prompt is the better one, or which answers are good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from loraft.config.choices import Method, RowFormat, TaskName
from loraft.errors import ConfigError, Problem
from loraft.figures import counted
from loraft.rows.formats import Conversation, LanguagePair, PreferencePair, PromptCompletion, Record, UnpairedAnswer
from loraft.rows.preferences import to_pair, to_unpaired
from loraft.tasks.causal_lm import CausalLM, common_system_prompt
from loraft.tasks.task import LOSS, Before, MetricFacts, Reference, StarterFacts, TaskMetrics, TokenSpan
from loraft.tokenization.examples import IGNORED, DatasetFacts, Example, RowRenderer, with_mismatched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.rows.row import Row
    from loraft.tasks.batches import Batch, BatchLayout
    from loraft.tasks.loss import TaskLoss
    from loraft.tokenization.preference_rows import PreferenceRenderer, UnpairedRenderer

ONE_SIDED = 0.75
"""Where one side is longer in a greater share of pairs, it is told."""
PAIR_METRICS: Mapping[str, MetricFacts] = {
    "accuracy": MetricFacts("share"),
    "margin": MetricFacts("number"),
    "chosen_reward": MetricFacts("number"),
    "rejected_reward": MetricFacts("number"),
}
ANSWER_METRICS = dict.fromkeys(("margin", "desirable_reward", "undesirable_reward", "kl"), MetricFacts("number"))
EVEN = 4 / 3
"""Desirable answers should weigh from 1 to so many times as much as the others; arXiv:2402.01306, equation 9."""


class Preference(CausalLM):
    """A decoder learns which answers are better, of pairs or by labels; they are those of any decoder."""

    name = "preference"
    summary = "A decoder learns which of two answers is better."
    formats = ("preferences", "unpaired")
    unit = "row"
    metrics = TaskMetrics(always={**LOSS, **PAIR_METRICS, **ANSWER_METRICS}, offered={}, default=())
    balances_routers = False
    joins_prompts = False
    compares_answers = True
    texts_a_row = 2
    rate_share = 0.1
    starter_rows = ("data/train.jsonl", "preferences")

    def record(self, row: Row, row_format: str, columns: Mapping[str, str], languages: LanguagePair) -> Record:
        """The two answers that a row has, each behind its prompt, or the one with its label.

        Raises:
            DataError: A field is missing, empty or of the wrong type; it is named with file and line.
        """
        return to_unpaired(row, columns) if row_format == "unpaired" else to_pair(row, columns)

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """Whether there are conversations, the system prompt of all of them, and whether answers stand alone.

        The first row tells what all of them must be.
        """
        answers = [_answer(record) for record in records]
        conversations = not answers or any(isinstance(answer, Conversation) for answer in answers)
        alone = bool(records) and isinstance(records[0], UnpairedAnswer)
        return DatasetFacts(common_system_prompt(answers), conversations, unpaired=alone)

    def renderer(
        self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts
    ) -> PreferenceRenderer | UnpairedRenderer:
        """What renders both texts of a pair, or an answer by itself, as those of any decoder."""
        from loraft.tokenization.preference_rows import PreferenceRenderer, UnpairedRenderer

        kind = UnpairedRenderer if facts.unpaired else PreferenceRenderer
        made = kind.for_tokenizer(
            tokenizer,
            chat_template=data.chat_template,
            conversations=facts.conversations,
            system_prompt=facts.system_prompt,
            plain=not facts.conversations,
            special_tokens_in_text=data.special_tokens_in_text,
        )
        assert isinstance(made, PreferenceRenderer | UnpairedRenderer), "it is made of its own class"
        return made

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The prompt, and the better answer; nothing where the only one is undesirable."""
        if isinstance(record, UnpairedAnswer) and not record.desirable:
            return None
        chosen = _answer(record)
        if isinstance(chosen, PromptCompletion):
            return Reference(chosen.prompt, chosen.completion)
        first = next(place for place, turn in enumerate(chosen.messages) if turn.train)
        return Reference(chosen.messages[:first], chosen.messages[first].content)

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The texts, with what of each is compared."""
        pair = ("chosen", "rejected")
        names = pair if example.desirable is None else ("desirable",) if example.desirable else ("undesirable",)
        for name, text in zip(names, example.texts, strict=True):
            yield TokenSpan(name, text.input_ids, [False, *(label != IGNORED for label in text.labels[1:])])

    def read_by(self, stack: str, example: Example) -> Sequence[int]:
        """The texts, each by itself."""
        return [len(text.input_ids) for text in example.texts]

    def class_number(self, example: Example) -> int | None:
        """1 of a desirable answer, 0 of one that is not, and None of a pair."""
        return None if example.desirable is None else int(example.desirable)

    def notes_on(self, config: RunConfig, examples: Sequence[Example]) -> Iterator[str]:
        """Which answers are the longer ones, or how many are desirable: what a model may learn besides."""
        if any(example.desirable is not None for example in examples):
            yield from _notes_on_labels(config, examples)
            return
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

    def loss_of(self, config: RunConfig) -> type[TaskLoss]:
        """The loss of pairs, or that of answers that stand alone."""
        from loraft.tasks.kto_loss import KTOLoss

        return KTOLoss if config.preference.loss == "kto" else self.loss

    def collate(self, examples: Sequence[Example], layout: BatchLayout) -> Batch:
        """Lay pairs, or answers that stand alone."""
        from loraft.tasks.batches import collate_preferences, collate_unpaired

        return (collate_preferences if examples[0].desirable is None else collate_unpaired)(examples, layout)

    def with_mismatched(self, batches: Sequence[Sequence[Example]], config: RunConfig) -> list[list[Example]]:
        """The batches of a step; answers that stand alone have that of another row beside them."""
        if config.preference.loss != "kto":
            return super().with_mismatched(batches, config)
        rows = iter(with_mismatched([row for batch in batches for row in batch], config.data.max_length))
        return [list(islice(rows, len(batch))) for batch in batches]

    def problems(self, config: RunConfig, renderer: RowRenderer) -> list[Problem]:
        """A loss of pairs for answers that stand alone, or the other way around."""
        from loraft.tokenization.preference_rows import UnpairedRenderer

        asked, alone = config.preference.loss, isinstance(renderer, UnpairedRenderer)
        if alone == (asked == "kto"):
            return []
        if alone:
            message = f"is {asked}, which compares the two answers of a pair, and each row has one with a label"
            return [Problem(message, key="preference.loss", remedy="Write kto.")]
        message = "is kto, which learns from single answers with a label, and the rows are pairs"
        remedy = "Write dpo, or another loss of pairs; or rows with prompt, completion and label."
        return [Problem(message, key="preference.loss", remedy=remedy)]

    @property
    def evaluated_as(self) -> TaskName:
        """That of any decoder: rows of one answer each tell whether it still answers."""
        return "causal_lm"

    def weight_of(self, example: Example) -> int:
        """Each row counts the same, however long its answers are."""
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

    def starter_loss(self, method: Method, row_format: RowFormat) -> Iterator[tuple[str, object, str]]:
        """The loss, that of the rows, one without a reference where none is kept.

        Raises:
            ConfigError: No loss of such rows does without one.
        """
        if row_format == "unpaired" and method == "full":
            message = (
                "is full, which keeps no base to compare with, and kto, by which single answers are learned, needs it"
            )
            raise ConfigError(message, parameter="method", remedy="Take lora or qlora.")
        if row_format == "unpaired":
            yield "preference.loss", "kto", "kto learns from answers that a label calls good or bad."
        elif method == "full":
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


def _answer(record: Record) -> Conversation | PromptCompletion:
    """The answer of a record to be given: of a pair the better one."""
    if isinstance(record, UnpairedAnswer):
        return record.answer
    assert isinstance(record, PreferencePair), "the task's own records"
    return record.chosen


def _notes_on_labels(config: RunConfig, examples: Sequence[Example]) -> Iterator[str]:
    """How many answers are of each kind, and by which weights their shares would be even."""
    desirable = sum(bool(example.desirable) for example in examples)
    undesirable = len(examples) - desirable
    yield f"{desirable:,} of {counted(len(examples), 'answer')} are desirable and {undesirable:,} undesirable"
    if not desirable or not undesirable:
        kind, other = ("desirable", "undesirable") if desirable else ("undesirable", "desirable")
        yield f"every answer is {kind}: without any {other} one, kto has nothing to tell them apart from"
        return
    asked = config.preference
    share = desirable * asked.desirable_weight / (undesirable * asked.undesirable_weight)
    if config.preference.loss == "kto" and not 1 / 1.005 <= share <= EVEN * 1.005:
        lighter = "desirable" if share < 1 else "undesirable"
        given = getattr(asked, f"{lighter}_weight")
        low, high = (1 / share, EVEN / share) if share < 1 else (share / EVEN, share)
        yield (
            f"by rows times weights that is {share:.2f} desirable to 1 undesirable, and 1 to {EVEN:.2f} is advised: "
            f"preference.{lighter}_weight from {low * given:.3g} to {high * given:.3g} makes it so"
        )
