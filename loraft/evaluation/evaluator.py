"""The one loop of an evaluation: rows in, figures out, and nothing kept of a row but the few numbers that it adds.

Rows are taken in windows: inside one they are sorted by length, so that little is padded. Each model reads a window
and answers it, its rows go to the file, and the next window begins. The loss is the negative log-likelihood of all
trained tokens over their number; how many rows are read at a time changes nothing but the speed.
"""

from __future__ import annotations

import difflib
import math
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from loraft.errors import DataError, Interrupted, NonFiniteError, lacking
from loraft.evaluation.eval_dataset import EvalExample, EvaluatedRows
from loraft.evaluation.evaluation_result import Confusion, Evaluation, Figure, PairedDifference, paired_differences
from loraft.evaluation.metrics import METRICS, LabelTally, RowTally, is_valid_json, loss_sums
from loraft.events import Observer, Progress
from loraft.io.jsonl import JsonLines, open_jsonl
from loraft.io.resources import memory_errors
from loraft.tasks import TASKS
from loraft.tasks.task import ROUGE, Task
from loraft.tokenization.examples import Example

PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", **dict.fromkeys(ROUGE, "rouge_score")}
"""The packages that compute metrics, where not loraft does."""
GROUPS = {"rouge": ROUGE}
"""Several figures under one name."""


def known_metrics(names: Sequence[str], task: Task | None = None) -> tuple[str, ...]:
    """The figures that are meant, each once, groups taken apart; where one is wrong, those of `task` are proposed.

    Raises:
        DataError: A name is none that any task knows; the nearest one is named.
    """
    every = tuple(dict.fromkeys([*(name for task in TASKS.values() for name in _names(task)), *GROUPS]))
    by_lower_case = {name.lower(): name for name in every}
    found: list[str] = []
    for given in names:
        name = by_lower_case.get(given.strip().lower().replace("-", "_"))
        if name is None:
            offered = every if task is None else _names(task)
            begin = [each for each in offered if each.lower().startswith(given.strip().lower())]
            nearest = next(iter(begin or difflib.get_close_matches(given.strip().lower(), offered, n=1)), None)
            remedy = f"{f'Did you mean {nearest}? ' if nearest else ''}The metrics are {', '.join(offered)}."
            raise DataError(f"there is no metric {given.strip()!r}", parameter="metrics", remedy=remedy)
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def chosen_metrics(asked: Sequence[str] | None, task: Task, references: Collection[str]) -> tuple[str, ...]:
    """The figures that are computed besides the loss: those that were asked for, or what suits task and references.

    Raises:
        DataError: One that was asked for is not of this task, has no references, or its package is absent.
    """
    metrics = task.metrics
    if asked is None:
        if not references:
            return ()
        _require_packages(metrics.default)
        all_json = bool(metrics.where_json) and all(map(_is_json_structure, references))
        return metrics.default + (metrics.where_json if all_json else ())
    wanted = tuple(name for name in asked if name not in metrics.always)
    if unfit := [name for name in wanted if name not in metrics.offered]:
        others = [other.name for other in TASKS.values() if unfit[0] in _names(other)]
        message = f"{unfit[0]} measures {' and '.join(others)}, and this is {task.name}"
        raise DataError(message, parameter="metrics", remedy=f"There are {', '.join(_names(task))}.")
    if wanted and not references:
        message = f"{wanted[0]} compares answers with references, and no row has one"
        remedy = "Plain text has only a loss; rows of messages or of prompt and completion have references."
        raise DataError(message, parameter="metrics", remedy=remedy)
    _require_packages(wanted)
    return wanted


def _require_packages(names: Sequence[str]) -> None:
    needed = {PACKAGES[name]: name for name in reversed(names) if name in PACKAGES}
    absent = (lacking(package, name, parameter="metrics") for package, name in needed.items())
    if problems := [problem for problem in absent if problem is not None]:
        raise DataError.several(problems)


def _names(task: Task) -> tuple[str, ...]:
    """Every metric of a task."""
    return (*task.metrics.always, *task.metrics.offered)


def _is_json_structure(text: str) -> bool:
    """Whether a text is a JSON object or list: a bare number is JSON too, but says nothing of what was meant."""
    return text.lstrip().startswith(("{", "[")) and is_valid_json(text)


BATCHES_A_WINDOW = 4


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: Its answer; a classifier's is the name of a class.
        finish_reason: `stop`, or `length` where the limit cut it.
        probabilities: Of each class, where it tells classes.
    """

    text: str
    finish_reason: str = "stop"
    probabilities: Mapping[str, float] | None = None


@dataclass(frozen=True)
class RowScore:
    """What a model makes of a row that it reads.

    Attributes:
        loss: The summed negative log-likelihood of what is trained in it, in nats.
        answer: The class that it tells; where answers are generated, that follows.
    """

    loss: float
    answer: Answer | None = None


@dataclass(frozen=True)
class EvalModel:
    """A model that is evaluated.

    Attributes:
        read: What it makes of each of a few examples.
        answers: Its answers to prompts of tokens; None where it generates none.
    """

    name: str
    read: Callable[[Sequence[Example]], Sequence[RowScore]]
    answers: Callable[[Sequence[Sequence[int]]], Sequence[Answer]] | None = None


class _Tallies:
    """A model, and what its rows have added up to."""

    def __init__(self, model: EvalModel, names: Sequence[str], labels: Sequence[str], *, keep: bool) -> None:
        self.model, self.names, self.cut = model, names, 0
        self.losses = loss_sums(keep=keep, of_text=not labels)
        self.classes = LabelTally(labels, keep=keep) if labels else None
        makers = () if labels else dict.fromkeys(METRICS[name] for name in names)
        self.texts = [RowTally(maker(), keep=keep) for maker in makers]
        self.answers: list[RowTally | LabelTally] = [*self.texts, *([self.classes] if self.classes else [])]

    @property
    def figure(self) -> Figure:
        figures = {key: value for tally in self.answers for key, value in tally.figures().items()}
        of_losses = self.losses.figures()
        asked = {key: figures[key] for key in self.names}
        return Figure(self.model.name, of_losses["loss"], of_losses.get("perplexity"), asked, self.cut)

    def add(self, item: EvalExample, reading: RowScore) -> None:
        self.losses.add((reading.loss, item.example.trained))
        if reading.answer is not None and item.question is not None:
            self.cut += reading.answer.finish_reason == "length"
            for tally in self.answers:
                tally.add(reading.answer.text, item.question.reference)


def evaluate(
    rows: EvaluatedRows,
    subject: EvalModel,
    baseline: EvalModel | None,
    *,
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    batch_size: int,
    output: Path | None,
    observer: Observer,
) -> Evaluation:
    """Measure a model on rows and, on the same tokens, its base where there is one to compare it with.

    Where there are no `metrics` besides the loss, nothing is generated. `labels` are the classes that the models tell
    apart. The rows go to `output` in their order.

    Raises:
        DataError: There are no rows, or a row's prompt cannot be read.
        RunError: A loss is not a number, the device is too small for so many rows at a time, or the disk filled up.
        Interrupted: By SIGINT or SIGTERM, with the rows so far in `output`.
    """
    if not rows.items:
        raise DataError("no row is left to evaluate on", where=rows.called)
    references = sum(item.question is not None for item in rows.items)
    metrics = metrics if references else ()
    begun, measured = perf_counter(), _Tallies(subject, metrics, labels, keep=baseline is not None)
    base = None if baseline is None else _Tallies(baseline, metrics, labels, keep=True)
    out_of_memory = f"the device ran out of memory with {batch_size} rows at a time"
    remedy = "Give a smaller `batch_size`" + (", or a smaller `max_new_tokens`." if metrics and not labels else ".")
    with memory_errors(out_of_memory, remedy=remedy):
        _tally(rows, [measured, base] if base else [measured], batch_size, output, observer)
    seconds, told = perf_counter() - begun, measured.classes
    return Evaluation(
        task=rows.task.name,
        data=rows.called,
        rows=len(rows.items),
        references=references,
        tokens=sum(item.example.trained for item in rows.items),
        measured=measured.figure,
        baseline=base.figure if base else None,
        differences=_differences(measured, base, rows=len(rows.items), references=references) if base else {},
        signatures=_signatures(measured),
        output=output,
        seconds=seconds,
        confusion_matrix=Confusion(tuple(labels), told.confusion_matrix) if told else None,
    )


def _tally(
    rows: EvaluatedRows, models: Sequence[_Tallies], batch_size: int, output: Path | None, observer: Observer
) -> None:
    """Let every model read and answer every row, a window at a time, and write the rows."""
    total = len(rows.items)
    with nullcontext() if output is None else open_jsonl(output) as file, _told(file, total):
        for start in range(0, total, batch_size * BATCHES_A_WINDOW):
            window = rows.items[start : start + batch_size * BATCHES_A_WINDOW]
            found = [_measure(each, window, rows, batch_size) for each in models]
            for tallies, readings in zip(models, found, strict=True):
                for item, reading in zip(window, readings, strict=True):
                    tallies.add(item, reading)
            if file is not None:
                file.append([_line(item, *each) for item, *each in zip(window, *found, strict=True)])
            observer(Progress("rows evaluated", start + len(window), total))


def _measure(tallies: _Tallies, window: Sequence[EvalExample], rows: EvaluatedRows, batch_size: int) -> list[RowScore]:
    """What a model makes of each row of a window and, where metrics need it, its answer to each that asks something."""
    subject, found = tallies.model, dict[int, RowScore]()
    by_length = sorted(range(len(window)), key=lambda place: -len(window[place].example.input_ids))
    for start in range(0, len(window), batch_size):
        places = by_length[start : start + batch_size]
        found |= zip(places, subject.read([window[place].example for place in places]), strict=True)
    for place, reading in found.items():
        if not math.isfinite(reading.loss):
            remedy = "Compute in another `dtype`: float16 overflows in some models."
            message = f"the loss of {subject.name} is {reading.loss}"
            raise NonFiniteError(message, where=window[place].example.where, remedy=remedy)
    asking = [place for place, item in enumerate(window) if item.question is not None] if tallies.names else []
    if asking and subject.answers is not None:
        prompts = [rows.prompt_ids(window[place]) for place in asking]
        for place, answer in zip(asking, subject.answers(prompts), strict=True):
            found[place] = replace(found[place], answer=answer)
    return [found[place] for place in range(len(window))]


def _line(item: EvalExample, reading: RowScore, of_base: RowScore | None = None) -> dict[str, object]:
    """A row as it is written."""
    question, tokens = item.question, item.example.trained
    row: dict[str, object] = {
        "row": item.example.where,
        "input": question.shown if question is not None else None,
        "reference": question.reference if question is not None else None,
        **_said(reading, tokens),
    }
    if reading.answer is None or reading.answer.probabilities is None:  # a class is one decision
        row["tokens"] = tokens
    return row if of_base is None else row | {"baseline": _said(of_base, tokens)}


def _said(reading: RowScore, tokens: int) -> dict[str, object]:
    answer = reading.answer
    if answer is not None and answer.probabilities is not None:
        return {"prediction": answer.text, "probabilities": dict(answer.probabilities), "loss": reading.loss / tokens}
    text, reason = (answer.text, answer.finish_reason) if answer is not None else (None, None)
    return {"prediction": text, "finish_reason": reason, "loss": reading.loss / tokens}


def _differences(measured: _Tallies, base: _Tallies, *, rows: int, references: int) -> dict[str, PairedDifference]:
    """What is measured minus its base, for every figure that is shown."""
    found = {**paired_differences(base.losses.figures, measured.losses.figures, rows)}
    always = tuple(found)
    for tally, other in zip(measured.answers, base.answers, strict=True):
        found |= paired_differences(other.figures, tally.figures, references)
    return {name: found[name] for name in (*always, *measured.names)}


def _signatures(tallies: _Tallies) -> dict[str, str]:
    found = {name: tally.metric.signature for tally in tallies.texts for name in tally.metric.names}
    return {name: signature for name in tallies.names if (signature := found.get(name)) is not None}


@contextmanager
def _told(file: JsonLines | None, total: int) -> Iterator[None]:
    """What ends the work early, with how far it came."""
    try:
        yield
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        kept = f": {file.rows:,} of {total:,} rows are in {file.path}" if file is not None else ""
        remedy = "An evaluation begins anew: `overwrite` replaces the file." if file is not None else None
        raise Interrupted(f"stopped{kept}", signal_number=number, remedy=remedy) from None
