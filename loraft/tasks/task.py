"""What a task is: everything that differs between training a chat model, a translator and a classifier.

Nothing heavy is imported here, so that the command line can ask a task too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from loraft.config.choices import Method, ModelGroup, RowFormat, TaskName
from loraft.models.registry import GROUPS, ModelSpec
from loraft.rows.formats import LanguagePair, Message, Record, Tools, to_record
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.errors import Problem
    from loraft.rows.row import Row
    from loraft.tasks.batches import Batch, BatchLayout
    from loraft.tasks.loss import TaskLoss
    from loraft.tasks.training_metadata import TrainingMetadata


Before = Callable[[], AbstractContextManager[object]]
"""What, while it is entered, makes a model what it was before training."""


@dataclass(frozen=True)
class MetricFacts:
    """What there is to know of a metric before anything is measured.

    Attributes:
        look: How its figures are written: a share from 0 to 1 in per cent, points from 0 to 100 with two decimals, and
            a number as it is.
        package: The one that computes it, where not loraft does.
    """

    look: Literal["share", "points", "number"]
    package: str | None = None


ROUGE = ("rouge1", "rouge2", "rougeL")
LOSS: Mapping[str, MetricFacts] = {"loss": MetricFacts("number")}
TEXT_LOSS: Mapping[str, MetricFacts] = {**LOSS, "perplexity": MetricFacts("number")}
TEXT_METRICS: Mapping[str, MetricFacts] = {
    "exact_match": MetricFacts("share"),
    "valid_json": MetricFacts("share"),
    "bleu": MetricFacts("points", "sacrebleu"),
    "chrf": MetricFacts("points", "sacrebleu"),
    **dict.fromkeys(ROUGE, MetricFacts("share", "rouge_score")),
}
"""The metrics of answers, beside the loss."""


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of a task: those of every evaluation, what may be asked for besides, and what is where nobody asks.

    Attributes:
        where_json: What is given besides where every reference is a JSON object or list.
    """

    always: Mapping[str, MetricFacts]
    offered: Mapping[str, MetricFacts]
    default: tuple[str, ...]
    where_json: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """What a row asks: its prompt, source or text, or the turns before its last answer; and what answers it.

    Attributes:
        reference: The right answer; of a text that is classified, with a `second` one or alone, the name of its class.
        tools: Those that the answer may call.
    """

    asked: str | tuple[Message, ...]
    reference: str
    second: str | None = None
    tools: Tools = ()

    @property
    def shown(self) -> object:
        """What is asked, as JSON shows it."""
        if isinstance(self.asked, str):
            return self.asked if self.second is None else [self.asked, self.second]
        return [{"role": message.role, "content": message.content} for message in self.asked]


@dataclass(frozen=True)
class TokenSpan:
    """Tokens of an example that the model reads in one go.

    Attributes:
        name: `text`; of an encoder-decoder `source` and `target`.
        trained: Which of the tokens are learned.
        segments: Which of two texts each is of, where the model tells them apart.
    """

    name: str
    ids: Sequence[int]
    trained: Sequence[bool]
    segments: Sequence[int] | None = None


class Task(ABC):
    """What a model is trained for.

    Attributes:
        summary: What is learned, in a sentence.
        formats: The formats of rows that it takes, in the order in which they are recognised.
        only_if_asked: Formats of these whose columns alone do not mean it: who names no task has them read for another.
        peft_type: What peft calls it.
        auto_class: The class of transformers that the example of a model card loads with; loraft itself goes by
            `models.auto_model.class_of`.
        pipeline_tag: What the Hub calls what was trained.
        unit: What a loss is counted by.
        inputs: A word for people: what a model of it reads.
        packs: Its rows can lie end to end in one line.
        balances_routers: Its loss may have the auxiliary loss of a mixture's routers beside it.
        joins_prompts: A prompt and its completion are one text, as they stand.
        compares_answers: Its rows have two answers to one prompt, and the loss tells how they compare.
        texts_a_row: How many texts, of `data.max_length` at most, a row has that lie end to end.
        rate_share: What of a method's usual learning rate it takes where nobody says.
        translates: Its rows, of whatever format, are a source and a target, each in a language.
        reads_system_prompts: Held-out rows tell, as training rows do, whether all have one system prompt.
        starter_model: A small model to begin with.
        starter_rows: Rows to begin with, and their format, where nobody names any.
    """

    name: ClassVar[TaskName]
    summary: ClassVar[str]
    group: ClassVar[ModelGroup]
    formats: ClassVar[tuple[RowFormat, ...]]
    only_if_asked: ClassVar[tuple[RowFormat, ...]] = ()
    peft_type: ClassVar[str]
    auto_class: ClassVar[str]
    pipeline_tag: ClassVar[str] = "text-generation"
    unit: ClassVar[str] = "trained token"
    inputs: ClassVar[str] = "rows"
    metrics: ClassVar[TaskMetrics]
    generates: ClassVar[bool] = True
    packs: ClassVar[bool] = False
    balances_routers: ClassVar[bool] = False
    joins_prompts: ClassVar[bool] = False
    compares_answers: ClassVar[bool] = False
    texts_a_row: ClassVar[int] = 1
    rate_share: ClassVar[float] = 1.0
    translates: ClassVar[bool] = False
    reads_system_prompts: ClassVar[bool] = False
    starter_model: ClassVar[str]
    starter_rows: ClassVar[tuple[str, RowFormat]]

    @property
    def families(self) -> Mapping[str, ModelSpec]:
        """The architectures that are trained for it, by model_type."""
        return GROUPS[self.group]

    # Rows

    def record(self, row: Row, row_format: RowFormat, columns: Mapping[str, str], languages: LanguagePair) -> Record:
        """What a row says.

        Raises:
            DataError: A field is missing, empty or of the wrong type; it is named with file and line.
        """
        return to_record(row, row_format, columns, languages=languages, as_pair=self.translates)

    def classes_in(self, records: Sequence[Record]) -> Mapping[str, int]:
        """The classes of records in their order, with how many rows each has; none where rows have no classes."""
        return {}

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """What a renderer takes from the records that it will render: nothing, where a record says all of itself."""
        return DatasetFacts()

    @abstractmethod
    def renderer(self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts) -> RowRenderer:
        """What turns the records of a run into examples.

        Raises:
            DataError: The tokenizer or the template will not do, or the rows have no classes to learn.
        """

    @abstractmethod
    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """What a record asks, and its answer; None where it asks nothing.

        Raises:
            DataError: Its class is none of the labels.
        """

    def class_number(self, example: Example) -> int | None:
        """The number of an example's class; None where it has none."""
        return None

    @abstractmethod
    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """What the model reads of an example, and what of it is learned."""

    def read_by(self, stack: str, example: Example) -> Sequence[int]:
        """How many tokens one of the model's stacks of layers reads of each text of an example."""
        return [len(example.input_ids)]

    def length_limits(self, data: DataSection) -> Mapping[str, int]:
        """The most tokens that rows may have, by the key that says so."""
        return {"data.max_length": data.max_length}

    # Training

    def head(self, spec: ModelSpec) -> tuple[str, ...]:
        """The modules of a head of its own, which are trained whole; none where the model's own head is used."""
        return ()

    @property
    @abstractmethod
    def loss(self) -> type[TaskLoss]:
        """The loss of a model; its `class_weights` are what `loss_weights` gave."""

    def settled(self, loss: TaskLoss, config: RunConfig, before: Before) -> TaskLoss:
        """A loss with the settings that only its task has; while `before()` is entered the model is as it began."""
        return loss

    @property
    def evaluated_as(self) -> TaskName:
        """The task whose rows say how good the answers are of what was trained, where they are not its own."""
        return self.name

    def weight_of(self, example: Example) -> int:
        """What the loss of an example is divided by: its trained tokens, or decisions."""
        return example.trained

    def loss_of(self, config: RunConfig) -> type[TaskLoss]:
        """The loss that a config asks for."""
        return self.loss

    def with_mismatched(self, batches: Sequence[Sequence[Example]], config: RunConfig) -> list[list[Example]]:
        """The batches of a step, each row with the answer of another one where its loss compares with such."""
        return [list(batch) for batch in batches]

    def has_reference(self, config: RunConfig) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return False

    def collate(self, examples: Sequence[Example], layout: BatchLayout) -> Batch:
        """Lay examples as the model takes them."""
        return self.loss.collate(examples, layout)

    def loss_weights(
        self, config: RunConfig, labels: Sequence[str], examples: Sequence[Example], drawn: Iterable[float]
    ) -> Tensor | None:
        """`[classes]`, what a row of each class counts, None for each the same; an epoch has each `drawn` times."""
        return None

    def notes_on(self, config: RunConfig, examples: Sequence[Example]) -> Iterator[str]:
        """What there is to say of training rows that only the task knows, a sentence each."""
        return iter(())

    def problems(self, config: RunConfig, renderer: RowRenderer) -> list[Problem]:
        """What is wrong with settings of the task, which the rows tell."""
        return []

    # Answers

    @abstractmethod
    def renderer_as_trained(self, tokenizer: PreTrainedTokenizerBase, metadata: TrainingMetadata) -> RowRenderer:
        """What makes prompts as they were made in training.

        Raises:
            DataError: The tokenizer needs to know languages, and nobody says which.
        """

    def prompt_ids(self, example: Example, asked: Reference, renderer: RowRenderer) -> list[int]:
        """The tokens that an answer to an example follows."""
        return example.input_ids

    def first_tokens(self, model: nn.Module, renderer: RowRenderer) -> Mapping[str, int | None]:
        """How an answer begins, in the words of transformers' generation config; empty where it goes on with a text."""
        return {}

    # Words

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """Keys of `data` in a first config: the dotted key, its value, and why it stands there."""
        return iter(())

    def starter_loss(self, method: Method, row_format: RowFormat) -> Iterator[tuple[str, object, str]]:
        """Keys of a section of its own in a first config, for a method and a format of rows."""
        return iter(())

    def facts_for_card(self, config: RunConfig, count: int) -> Mapping[str, str]:
        """How much was learned, as a model card says it."""
        return {"trained tokens": f"{count:,}"}

    def summary_of_result(self, result: Mapping[str, object]) -> Mapping[str, object]:
        """A training result as a person reads it."""
        return result

    def try_call(self, target: str, metadata: TrainingMetadata) -> str:
        """The call in Python that lets `target`, trained so, do what it was trained for."""
        return f"loraft.generate({target!r}, prompt=TEXT)"


@dataclass(frozen=True)
class StarterFacts:
    """What a task needs to know of rows and their model for its keys of a first config.

    Attributes:
        labels: The classes, and how many rows each has.
        prefixed: The model was trained with words before each source that say what to do.
    """

    format: RowFormat
    labels: Mapping[str, int] = field(default_factory=dict)
    languages: Sequence[str] = ()
    prefixed: bool = False
