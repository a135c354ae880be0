"""Preferences: a model learns which of two answers to a prompt is the better one, or which answers are good."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from loraft.config.choices import Method, RowFormat, TaskName
from loraft.errors import ConfigError, Problem
from loraft.figures import counted
from loraft.rows.formats import Answer, Conversation, LanguagePair, PreferencePair, Record, UnpairedAnswer
from loraft.rows.preferences import to_pair, to_unpaired
from loraft.tasks.task import LOSS, Before, MetricFacts, Reference, Task, TaskMetrics, TokenSpan
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer, with_mismatched

if TYPE_CHECKING:
    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.rows.row import Row
    from loraft.tasks.kto_loss import KTOLoss
    from loraft.tasks.loss import TaskLoss
    from loraft.tasks.preference_loss import PreferenceLoss

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


class ComparedAnswers(Task):
    """What learns which answers are better, of pairs or by labels; it stands before the task that learns one answer.

    Attributes:
        one: That task: what it knows of one answer, this one asks of each.
    """

    one: ClassVar[Task]
    formats: ClassVar[tuple[RowFormat, ...]] = ("preferences", "unpaired")
    unit = "row"
    metrics = TaskMetrics(always={**LOSS, **PAIR_METRICS, **ANSWER_METRICS}, offered={}, default=())
    compares_answers = True
    texts_a_row = 2
    rate_share = 0.1
    starter_rows: ClassVar[tuple[str, RowFormat]] = ("data/train.jsonl", "preferences")

    def record(self, row: Row, row_format: str, columns: Mapping[str, str], languages: LanguagePair) -> Record:
        """The two answers that a row has, each behind its prompt, or the one with its label.

        Raises:
            DataError: A field is missing, empty or of the wrong type; it is named with file and line.
        """
        return to_unpaired(row, columns) if row_format == "unpaired" else to_pair(row, columns)

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """What the answers tell, as if each stood alone with its prompt; and whether they do, by the first row."""
        of_one = self.one.facts(data, [answer_to_give(record) for record in records])
        return replace(of_one, unpaired=bool(records) and isinstance(records[0], UnpairedAnswer))

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The prompt, and the first turn of the better answer; nothing where the only one is undesirable."""
        if isinstance(record, UnpairedAnswer) and not record.desirable:
            return None
        answer = answer_to_give(record)
        if isinstance(answer, Conversation):
            first = next(place for place, turn in enumerate(answer.messages) if turn.train)
            answer = replace(answer, messages=answer.messages[: first + 1])
        return self.one.reference(answer, labels)

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The texts, with what of each is compared; of an encoder-decoder the source before both targets."""
        pair = ("chosen", "rejected")
        names = pair if example.desirable is None else ("desirable",) if example.desirable else ("undesirable",)
        for place, (name, text) in enumerate(zip(names, example.texts, strict=True)):
            *asked, answer = self.one.spans(text)
            yield from asked if place == 0 else ()
            yield replace(answer, name=name)

    def read_by(self, stack: str, example: Example) -> Sequence[int]:
        """The texts, each by itself."""
        return [length for text in example.texts for length in self.one.read_by(stack, text)]

    def prompt_ids(self, example: Example, asked: Reference, renderer: RowRenderer) -> list[int]:
        """The tokens that an answer to an example follows: of a pair either text has them."""
        return self.one.prompt_ids(example.texts[0], asked, renderer)

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
        if longer or shorter:
            chosen, rejected = (sum(each) / len(answers) for each in zip(*answers, strict=True))
            counts = f"longer in {longer:,} of {counted(len(answers), 'pair')} and shorter in {shorter:,}"
            yield f"the chosen answer is {counts}: it has {chosen:.1f} tokens on average, the other {rejected:.1f}"
        if max(longer, shorter) > ONE_SIDED * len(answers):
            yield "one side is mostly the longer one: look whether length is learned; ipo, orpo and simpo compare means"

    @property
    @abstractmethod
    def losses(self) -> tuple[type[PreferenceLoss], type[KTOLoss]]:
        """The loss of pairs, and that of answers that stand alone."""

    @property
    def loss(self) -> type[PreferenceLoss]:
        """The loss of pairs."""
        return self.losses[0]

    def loss_of(self, config: RunConfig) -> type[TaskLoss]:
        """The loss of pairs, or that of answers that stand alone."""
        return self.losses[config.preference.loss == "kto"]

    def with_mismatched(self, batches: Sequence[Sequence[Example]], config: RunConfig) -> list[list[Example]]:
        """The batches of a step; answers that stand alone have that of another row beside them."""
        if config.preference.loss != "kto":
            return super().with_mismatched(batches, config)
        rows = iter(with_mismatched([row for batch in batches for row in batch], config.data.max_length))
        return [list(islice(rows, len(batch))) for batch in batches]

    def problems(self, config: RunConfig, renderer: RowRenderer) -> list[Problem]:
        """A loss of pairs for answers that stand alone, or the other way around."""
        from loraft.tokenization.preference_rows import ComparedRenderer

        assert isinstance(renderer, ComparedRenderer), "the task makes its own"
        asked, alone = config.preference.loss, renderer.alone
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
        """That of one answer a row: such rows tell whether it still answers."""
        return self.one.name

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


def answer_to_give(record: Record) -> Answer:
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
