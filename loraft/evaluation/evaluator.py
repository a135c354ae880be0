"""The one loop of an evaluation: rows in, figures out, and nothing kept of a row but the few numbers that it adds.

Rows are taken in windows: inside one they are sorted by length, so that little is padded. The loss is the negative
log-likelihood of all trained tokens over their number; how many rows are read at a time changes but the speed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from loraft.dataset.sampler import chunks
from loraft.errors import DataError, Interrupted, NonFiniteError
from loraft.evaluation.bootstrap import BOOTSTRAP, PairedDifference, paired_differences
from loraft.evaluation.eval_dataset import EvalExample, EvalPurpose, EvaluatedRows
from loraft.evaluation.metrics import METRICS, LabelTally, RowTally, beyond_rouge, losses, pair_figures
from loraft.events import Observer, Progress, ignored, tell
from loraft.inference.completion import FINISH_REASONS, EndedBy, count_cut
from loraft.io.jsonl import JsonLines, open_jsonl
from loraft.io.resources import memory_errors
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example

BATCHES_A_WINDOW = 4


@dataclass(frozen=True)
class Answer:
    """What a model said: a text and why it ended, or the name of a class and the probability of each."""

    text: str
    ended_by: EndedBy = "stop_id"
    probabilities: Mapping[str, float] | None = None


@dataclass(frozen=True)
class RowScore:
    """What a model makes of a row: the negative log-likelihood of what is trained in it, in nats, and its answer.

    Of a pair the loss is that which compares its two answers, and `rewards` are those of the better and the worse one.
    """

    loss: float
    answer: Answer | None = None
    rewards: tuple[float, float] | None = None


@dataclass(frozen=True)
class EvalModel:
    """A model that is evaluated: what it makes of examples, and where it generates its answers to prompts of tokens.

    With the prompts comes the number of the first of them, from 0, by which what is drawn for each is drawn.
    """

    name: str
    read: Callable[[Sequence[Example]], Sequence[RowScore]]
    answers: Callable[[Sequence[Sequence[int]], int], Sequence[Answer]] | None = None

    def scores(self, examples: Sequence[Example], batch_size: int, observer: Observer = ignored) -> list[RowScore]:
        """What it makes of each example, in their order; those of like length are read together.

        Raises:
            NonFiniteError: The loss of one is no number.
        """
        by_length = sorted(range(len(examples)), key=lambda place: -len(examples[place].input_ids))
        found: dict[int, RowScore] = {}
        for places in chunks(by_length, batch_size):
            found |= zip(places, self.read([examples[place] for place in places]), strict=True)
            observer(Progress(f"rows read by {self.name}", len(found), len(examples)))
        for place, score in found.items():
            if not math.isfinite(score.loss):
                remedy = "Compute in another `dtype`: float16 overflows in some models."
                message = f"the loss of {self.name} is {score.loss}"
                raise NonFiniteError(message, where=examples[place].where, remedy=remedy)
        return [found[place] for place in range(len(examples))]


@dataclass(frozen=True)
class Figure:
    """One model's figures: the loss in nats a trained token, of classes and pairs a row; `cut` answers are too long.

    Those of them that no larger limit would make longer are `cut_by_positions`: the model's end there.
    """

    name: str
    loss: float
    perplexity: float | None
    metrics: Mapping[str, float]
    cut: int
    cut_by_positions: int

    @property
    def figures(self) -> Mapping[str, float]:
        """All figures by name."""
        of_text = {} if self.perplexity is None else {"perplexity": self.perplexity}
        return {"loss": self.loss, **of_text, **self.metrics}


@dataclass(frozen=True)
class Confusion:
    """Which classes were taken for which: a matrix `[right, predicted]` of how many rows."""

    labels: Sequence[str]
    matrix: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        references: How many rows have a right answer.
        tokens: The trained tokens that the loss is of, of pairs those that are compared; of a classifier the rows.
        differences: What was evaluated minus its base, with the interval of each difference.
        signatures: How the figures were computed whose name does not say it.
        seconds: What it took, loading aside.
        confusion_matrix: None of what writes text.
    """

    task: str
    data: str
    rows: int
    references: int
    tokens: int
    measured: Figure
    baseline: Figure | None
    differences: Mapping[str, PairedDifference]
    signatures: Mapping[str, str]
    output: Path | None
    seconds: float
    confusion_matrix: Confusion | None = None

    def as_dict(self) -> dict[str, object]:
        """The result as JSON shows it: the figures of what was evaluated stand at the top."""
        shown = asdict(self)
        measured = shown.pop("measured")
        del shown["differences"]
        if self.baseline is not None:
            differences = {name: asdict(each) for name, each in self.differences.items()}
            shown["baseline"] |= {"differences": differences, **BOOTSTRAP}
        return {**measured, **shown}


class Tallies:
    """What the rows of a model have added up to; `names` are the figures besides those of the loss and of pairs."""

    def __init__(self, model: str, names: Sequence[str], purpose: EvalPurpose, *, keep: bool) -> None:
        labels, task = purpose.labels, purpose.task
        self.model, self.names, self.task, self.endings = model, names, task, Counter[EndedBy]()
        self.losses = RowTally(losses(of_text="perplexity" in task.metrics.always), keep=keep)
        self.pairs = RowTally(pair_figures(), keep=keep) if task.compares_answers else None
        self.classes = LabelTally(labels, keep=keep) if labels else None
        metrics = () if labels else dict.fromkeys(METRICS[name] for name in names)
        self.texts = [RowTally(metric(), keep=keep) for metric in metrics]
        self.answers: list[RowTally | LabelTally] = [*self.texts, *([self.classes] if self.classes else [])]

    @property
    def figure(self) -> Figure:
        """All of them."""
        of_answers = self.answers if self.names else ()
        figures = {key: value for tally in of_answers for key, value in tally.figures().items()}
        of_losses = self.losses.figures()
        asked = {**(self.pairs.figures() if self.pairs else {}), **{key: figures[key] for key in self.names}}
        cut = count_cut(self.endings.elements())
        return Figure(self.model, of_losses["loss"], of_losses.get("perplexity"), asked, *cut)

    @property
    def signatures(self) -> dict[str, str]:
        """How the figures were computed whose name does not say it."""
        found = {name: tally.metric.signature for tally in self.texts for name in tally.metric.names}
        return {name: signature for name in self.names if (signature := found.get(name)) is not None}

    def add(self, item: EvalExample, reading: RowScore) -> None:
        """Count one more row."""
        self.losses.add(reading.loss, self.task.weight_of(item.example))
        if self.pairs is not None and reading.rewards is not None:
            self.pairs.add(*reading.rewards)
        if reading.answer is not None and item.question is not None:
            self.endings[reading.answer.ended_by] += 1
            for tally in self.answers:
                tally.add(reading.answer.text, item.question.reference)

    def minus(self, base: Tallies, *, rows: int, references: int) -> dict[str, PairedDifference]:
        """These figures minus those of a base that were kept of the same rows, for every one that is shown."""
        found = {**paired_differences(base.losses.figures, self.losses.figures, rows)}
        if self.pairs is not None and base.pairs is not None:
            found |= paired_differences(base.pairs.figures, self.pairs.figures, rows)
        always = tuple(found)
        for tally, other in zip(self.answers, base.answers, strict=True) if self.names else ():
            found |= paired_differences(other.figures, tally.figures, references)
        return {name: found[name] for name in (*always, *self.names)}


def evaluate(
    rows: EvaluatedRows,
    subject: EvalModel,
    baseline: EvalModel | None = None,
    *,
    metrics: Sequence[str],
    batch_size: int,
    output: Path | None,
    observer: Observer,
) -> Evaluation:
    """Measure a model on rows and, on the same tokens, its base where there is one to compare it with.

    Where there are no `metrics` besides the loss, nothing is generated. The rows go to `output` in their order;
    whatever ends it early, those so far are there.
    """
    if not rows.items:
        raise DataError("no row is left to evaluate on", where=rows.called)
    references, labels = len(rows.references), rows.purpose.labels
    metrics = metrics if references else ()
    tell(observer, *beyond_rouge(metrics, rows.references))
    begun, models = perf_counter(), [subject] if baseline is None else [subject, baseline]
    tallies = [Tallies(model.name, metrics, rows.purpose, keep=baseline is not None) for model in models]
    measured, base = tallies[0], None if baseline is None else tallies[1]
    out_of_memory = f"the device ran out of memory with {batch_size} rows at a time"
    remedy = "Give a smaller `batch_size`" + (", or a smaller `max_new_tokens`." if metrics and not labels else ".")
    with memory_errors(out_of_memory, remedy=remedy):
        _tally(rows, list(zip(models, tallies, strict=True)), batch_size, output, observer)
    seconds, told = perf_counter() - begun, measured.classes
    return Evaluation(
        task=rows.purpose.task.name,
        data=rows.called,
        rows=len(rows.items),
        references=references,
        tokens=sum(item.example.trained for item in rows.items),
        measured=measured.figure,
        baseline=base.figure if base else None,
        differences=measured.minus(base, rows=len(rows.items), references=references) if base else {},
        signatures=measured.signatures,
        output=output,
        seconds=seconds,
        confusion_matrix=Confusion(labels, told.confusion_matrix) if told else None,
    )


def _tally(
    rows: EvaluatedRows,
    models: Sequence[tuple[EvalModel, Tallies]],
    batch_size: int,
    output: Path | None,
    observer: Observer,
) -> None:
    """Let every model read and answer every row, a window at a time, and write the rows."""
    total, asked = len(rows.items), 0
    with nullcontext() if output is None else open_jsonl(output) as file, _told(file, total):
        for start in range(0, total, batch_size * BATCHES_A_WINDOW):
            window = rows.items[start : start + batch_size * BATCHES_A_WINDOW]
            found = [_measure(model, window, rows, batch_size, asked if each.names else None) for model, each in models]
            asked += sum(item.question is not None for item in window)
            for (_, tallies), readings in zip(models, found, strict=True):
                for item, reading in zip(window, readings, strict=True):
                    tallies.add(item, reading)
            if file is not None:
                task = rows.purpose.task
                file.append([_line(task, item, *each) for item, *each in zip(window, *found, strict=True)])
            observer(Progress("rows evaluated", start + len(window), total))


def _measure(
    subject: EvalModel, window: Sequence[EvalExample], rows: EvaluatedRows, batch_size: int, asked: int | None
) -> list[RowScore]:
    """What a model makes of each row of a window and, where metrics need it, its answer to each that asks something.

    `asked` is the number of those that did so before; None where no metric needs an answer.
    """
    found = subject.scores([item.example for item in window], batch_size)
    asking = [place for place, item in enumerate(window) if item.question is not None]
    if asking and asked is not None and subject.answers is not None:
        prompts = [rows.prompt_ids(window[place]) for place in asking]
        for place, answer in zip(asking, subject.answers(prompts, asked), strict=True):
            found[place] = replace(found[place], answer=answer)
    return found


def _line(task: Task, item: EvalExample, reading: RowScore, of_base: RowScore | None = None) -> dict[str, object]:
    """A row as it is written."""
    question, weight = item.question, task.weight_of(item.example)
    row: dict[str, object] = {
        "row": item.example.where,
        "input": question.shown if question is not None else None,
        "reference": question.reference if question is not None else None,
        **_said(reading, weight),
    }
    if reading.answer is None or reading.answer.probabilities is None:  # a class is one decision
        row["tokens"] = item.example.trained
    return row if of_base is None else row | {"baseline": _said(of_base, weight)}


def _said(reading: RowScore, weight: int) -> dict[str, object]:
    answer, loss = reading.answer, reading.loss / weight
    if reading.rewards is not None:
        chosen, rejected = reading.rewards
        return {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected, "loss": loss}
    if answer is not None and answer.probabilities is not None:
        return {"prediction": answer.text, "probabilities": dict(answer.probabilities), "loss": loss}
    text, reason = (answer.text, FINISH_REASONS[answer.ended_by]) if answer is not None else (None, None)
    return {"prediction": text, "finish_reason": reason, "loss": loss}


@contextmanager
def _told(file: JsonLines | None, total: int) -> Iterator[None]:
    """What ends the work early, with how far it came."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = f": {file.rows:,} of {total:,} rows are in {file.path}" if file is not None else ""
        remedy = "An evaluation begins anew: `overwrite` replaces the file." if file is not None else None
        raise Interrupted(f"stopped{kept}", signal_number=Interrupted.by(stop).signal_number, remedy=remedy) from None
