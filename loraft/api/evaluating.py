"""How good answers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraft.config.sections import DataSource
from loraft.errors import AdapterError
from loraft.evaluation.eval_dataset import read_eval_source, run_of
from loraft.evaluation.evaluator import Evaluation
from loraft.evaluation.evaluator import evaluate as measure
from loraft.evaluation.open_model import (
    RequestedModel,
    chosen_metrics,
    classifying,
    generating,
    known_metrics,
    purpose_of,
)
from loraft.events import Observer, ignored
from loraft.inference.batch_generate import BATCH_SIZE
from loraft.inference.requests import GenerationRequest, ModelRequest
from loraft.io.jsonl import check_jsonl

GREEDY = GenerationRequest(temperature=0, num_beams=1)


def evaluate(
    model: ModelRequest | str,
    *,
    data: DataSource | str | Path | None = None,
    metrics: Sequence[str] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    baseline: bool = False,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    options: GenerationRequest = GREEDY,
    observer: Observer = ignored,
) -> Evaluation:
    """Measure a model on rows: its loss on their answers or classes, and its own answers by theirs.

    Args:
        model: What is evaluated; a name alone is its target.
        data: The rows; None takes those that the run of what is evaluated held out.
        metrics: The figures besides loss and perplexity; None gives those of the task, where rows have a right answer.
        output: Where each row is written with its loss and its answer.
        overwrite: Replace what `output` holds.
        baseline: Measure the base too, and the difference.
        batch_size: How many rows at a time.
        limit: At most so many rows, the first ones.
        options: How answers are made.
        observer: Is told how far it is.

    Raises:
        InvalidInputError: Before anything is measured, with every bad row.
        RunError: While running; the rows so far are in `output`.
        Interrupted: By a signal; the rows so far are in `output`.
    """
    requested = RequestedModel(model)
    rows_from = data if isinstance(data, DataSource | None) else DataSource(path=str(data))
    if output is not None:
        check_jsonl(output, reads=[] if rows_from is None else [Path(rows_from.path).expanduser()], overwrite=overwrite)
    found = requested.found
    if baseline and not found.adapters:
        message = "there is no adapter to compare with its base"
        raise AdapterError(message, parameter="baseline", remedy="Name an adapter or a run that has one as `target`.")
    purpose = purpose_of(requested, baseline=baseline, limit=limit)
    asked = None if metrics is None else known_metrics(metrics, purpose.task)
    source = read_eval_source(run_of(found), found.base, rows_from, purpose)
    names = chosen_metrics(asked, purpose.task, [question.reference for question in source.questions.values()])
    if purpose.labels:
        rows, subjects = classifying(requested, source, options, observer)
    else:
        rows, subjects = generating(requested, source, options, batch_size, observer)
    return measure(
        rows,
        subjects[0],
        subjects[1] if baseline else None,
        metrics=names,
        batch_size=batch_size,
        output=output,
        observer=observer,
    )
