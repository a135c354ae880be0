"""Sequence classification: a text, or a pair of texts, gets one of several classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loraft.errors import Problem
from loraft.models.registry import ModelSpec
from loraft.rows.formats import ClassificationRecord, Record
from loraft.rows.labels import class_called, class_number, labels_of, told_of_no_class
from loraft.tasks.task import LOSS, MetricFacts, Reference, StarterFacts, Task, TaskMetrics, TokenSpan
from loraft.tokenization.examples import DatasetFacts, Example, RowRenderer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraft.config.schema import RunConfig
    from loraft.config.sections import DataSection
    from loraft.tasks.loss import TaskLoss
    from loraft.tasks.training_metadata import TrainingMetadata
    from loraft.tokenization.plain_text_rows import ClassificationRenderer

LABEL_METRICS: Mapping[str, MetricFacts] = {
    "accuracy": MetricFacts("share"), "macro_f1": MetricFacts("share"), "mcc": MetricFacts("number"),
}  # fmt: skip
WEIGHTS = "training.class_weights"
MANY_CLASSES = 20


class SequenceClassification(Task):
    """A text gets one of several classes."""

    name = "seq_cls"
    summary = "A text gets one of several classes."
    group = "classifier"
    formats = ("classification",)
    peft_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    unit = "row"
    metrics = TaskMetrics(always=LOSS, offered=LABEL_METRICS, default=tuple(LABEL_METRICS))
    generates = False
    starter_model = "builtin:all-minilm-l6-v2"
    starter_rows = ("data/train.jsonl", "classification")

    def classes_in(self, records: Sequence[Record]) -> Mapping[str, int]:
        """The classes in their order, with how many rows each has."""
        names = labels_of(records)
        labels = (record.label for record in records if isinstance(record, ClassificationRecord))
        counted = Counter(class_number(label, names) for label in labels)
        return {name: counted[number] for number, name in enumerate(names)}

    def facts(self, data: DataSection, records: Sequence[Record]) -> DatasetFacts:
        """The classes, those of the config or those of the rows, and whether some rows have two texts."""
        pairs = any(isinstance(record, ClassificationRecord) and record.second is not None for record in records)
        return DatasetFacts(labels=tuple(data.labels) or labels_of(records), pairs=pairs)

    def renderer(self, data: DataSection, tokenizer: PreTrainedTokenizerBase, facts: DatasetFacts) -> RowRenderer:
        """What reads texts as the tokenizer does by itself."""
        from loraft.tokenization.plain_text_rows import ClassificationRenderer

        made = ClassificationRenderer.to_train(tokenizer, facts.labels, pairs=facts.pairs)
        cut_to = data.max_length if data.on_overlength == "truncate" else None
        told = () if data.labels else filter(None, [told_of_no_class(facts.labels)])
        notes = (*made.notes, *told)
        return replace(made, special_tokens_in_text=data.special_tokens_in_text, cut_to=cut_to, notes=notes)

    def reference(self, record: Record, labels: Sequence[str]) -> Reference | None:
        """The text, and the name of its class."""
        assert isinstance(record, ClassificationRecord), "the task's own records"
        return Reference(record.text, labels[class_number(record.label, labels)], record.second)

    def class_number(self, example: Example) -> int | None:
        """The number of its class."""
        return example.labels[0]

    def spans(self, example: Example) -> Iterator[TokenSpan]:
        """The text, of which no token is learned."""
        yield TokenSpan("text", example.input_ids, [False] * len(example.input_ids), example.token_type_ids)

    def head(self, spec: ModelSpec) -> tuple[str, ...]:
        """What gives the scores of the classes."""
        return spec.classifier

    @property
    def loss(self) -> type[TaskLoss]:
        """The loss of the rows' classes."""
        from loraft.tasks.loss import ClassificationLoss

        return ClassificationLoss

    def loss_weights(
        self, config: RunConfig, labels: Sequence[str], examples: Sequence[Example], drawn: Iterable[float]
    ) -> Tensor | None:
        """`[classes]`, what a row of each class counts; None where each counts the same.

        Source: balanced is rows / (classes · rows of the class), as scikit-learn has it; a class without rows counts 1.
        """
        import torch

        given = config.training.class_weights
        if given is None:
            return None
        if isinstance(given, dict):
            weights = {class_called(name, labels): weight for name, weight in given.items()}
            return torch.tensor([weights[number] for number in range(len(labels))])
        counts = dict.fromkeys(range(len(labels)), 0.0)
        for example, times in zip(examples, drawn, strict=True):
            counts[example.labels[0]] += times
        total = sum(counts.values())
        return torch.tensor([total / (len(labels) * counts[i]) if counts[i] else 1.0 for i in range(len(labels))])

    def problems(self, config: RunConfig, renderer: RowRenderer) -> list[Problem]:
        """What is wrong with the weights of classes: each class needs one, and there are no others."""
        given = config.training.class_weights
        if not isinstance(given, dict):
            return []
        found, labels = [], renderer.labels
        called = {name: class_called(name, labels) for name in given}
        if unknown := [name for name, number in called.items() if number is None]:
            message = f"there is no class {', '.join(unknown)}"
            found.append(Problem(message, key=WEIGHTS, remedy=f"The classes are {', '.join(labels)}."))
        by_class = Counter(called.values())
        if twice := [name for name, number in called.items() if number is not None and by_class[number] > 1]:
            message = f"{' and '.join(twice)} are one class"
            found.append(Problem(message, key=WEIGHTS, remedy="Give each class one weight."))
        if missing := [name for number, name in enumerate(labels) if number not in called.values()]:
            message = f"{', '.join(missing)} has no weight"
            found.append(Problem(message, key=WEIGHTS, remedy="Give each class one; 1 is plain."))
        return found

    def renderer_as_trained(
        self, tokenizer: PreTrainedTokenizerBase, metadata: TrainingMetadata
    ) -> ClassificationRenderer:
        """What reads texts as they were read in training."""
        from loraft.tokenization.plain_text_rows import ClassificationRenderer

        return ClassificationRenderer(
            tokenizer,
            labels=metadata.labels,
            special_tokens_in_text=metadata.special_tokens_in_text,
            pairs=metadata.pairs,
            cut_to=metadata.cut_to,
        )

    def starter_keys(self, start: StarterFacts) -> Iterator[tuple[str, object, str]]:
        """The classes, where they are few."""
        if 1 < len(start.labels) <= MANY_CLASSES:
            why = "The classes, numbered in this order. A row of another class is then an error."
            yield "data.labels", tuple(start.labels), why

    def facts_for_card(self, config: RunConfig, count: int) -> Mapping[str, str]:
        """How many rows were read: of each one decision is learned."""
        return {"rows read": f"{count:,}"}

    def summary_of_result(self, result: Mapping[str, object]) -> Mapping[str, object]:
        """Of a text a classifier learns one decision, and no token."""
        called = {"trained_tokens": "rows_read"}
        return {called.get(key, key): value for key, value in result.items() if key != "perplexity"}

    def try_call(self, target: str, metadata: TrainingMetadata) -> str:
        """The call that tells the class of a text, or of a pair."""
        return f"loraft.predict({target!r}, texts=[{'(TEXT, TEXT)' if metadata.pairs else 'TEXT'}])"
