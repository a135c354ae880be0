"""`loraft evaluate`: loss and the task's figures, of a model alone or beside its base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import RenderableType

from loraft import api
from loraft.cli.console import print_either
from loraft.cli.options import AnswerOptions, JsonOption, RowOptions, flag, option, refuse
from loraft.cli.text_tables import as_figure, cut_answers, facts, figures_beside, text_table
from loraft.cli.views.progress import watching
from loraft.inference.requests import GenerationRequest

if TYPE_CHECKING:
    from loraft.evaluation.evaluator import Confusion, Evaluation

LABEL_WIDTH = 22
MOST_CLASSES = 10
"""The most classes whose whole matrix is shown, and the most mistakes that are listed of more."""


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured."""

    data: str | None = option(
        "FILE",
        "Rows as in training: a file, a folder, a pattern, an address, - for standard input, a Hub dataset, "
        "builtin:NAME [default: those that the run held out].",
    )
    metrics: str | None = option(
        "A,B",
        "Figures besides loss and perplexity: exact_match, valid_json, bleu, chrf, rouge; of a classifier accuracy, "
        "macro_f1, mcc; with loss alone nothing is generated [default: the task's].",
    )
    output: Path | None = option("FILE", "Where each row is written with its loss and its answer or class, as JSONL.")
    overwrite: bool = flag("Replace what the output holds.")
    baseline: bool = flag("Measure the base without the adapter too, and how sure the difference is.")
    limit: int | None = option("N", "At most so many rows.", min=1)
    batch_size: int = option("N", "How many rows at a time: speed and memory alone.", default=8, min=1)

    def check(self) -> None:
        """Refuse options that contradict one another."""
        none_named = self.metrics is not None and not self.metrics.strip(" ,")
        refuse(
            (self.overwrite and self.output is None, "--overwrite is about --output, and there is none."),
            (none_named, "--metrics names at least one; loss alone generates nothing."),
        )


def evaluate(
    given: MeasureOptions,
    rows: RowOptions,
    asked: Annotated[
        AnswerOptions,
        "target max_new_tokens adapters base_model quantize dtype source_lang target_lang trust_remote_code",
    ],
    as_json: JsonOption = False,
) -> None:
    """Measure a model on rows that it has not learned: loss, perplexity, and its answers by the right ones.

    The loss is of the tokens that training would learn, each token counted once. Answers are greedy. Template, system
    prompt, languages and stop tokens are those that were saved with the adapter. A classifier is measured by the
    classes that it tells, with the matrix of which it took for which; what learned preferences, on pairs, by the loss
    that was trained with and the rewards of both answers.
    """
    model = asked.model
    given.check()
    data = rows.source(given.data)
    with watching("evaluate") as view:
        found = api.evaluate(
            model,
            data=data,
            metrics=None if given.metrics is None else [name for name in given.metrics.split(",") if name.strip()],
            output=given.output,
            overwrite=given.overwrite,
            baseline=given.baseline,
            limit=given.limit,
            batch_size=given.batch_size,
            options=GenerationRequest(temperature=0, num_beams=1, max_new_tokens=asked.max_new_tokens),
            observer=view,
        )
    named = found.measured.name if len(model.adapters) > 1 else model.target or model.adapters[0]
    print_either({"target": asked.target, **found.as_dict()}, _drawn(found, named), as_json=as_json)


def _drawn(found: Evaluation, named: str) -> Iterator[RenderableType]:
    """The figures with whose they are, and the base's beside them where there is one."""
    about: dict[str, object] = {"figures of": named, "task": found.task, "data": found.data, "rows": found.rows}
    if found.confusion_matrix is None:
        about["tokens"] = found.tokens
    if found.measured.metrics and found.references != found.rows:
        about["rows with an answer"] = found.references
    if found.measured.cut:
        about["cut answers"] = cut_answers(found.measured.cut, found.measured.cut_by_positions)
    if found.output is not None:
        about["output"] = found.output
    about["seconds"] = found.seconds
    yield facts("evaluated", about, label_width=LABEL_WIDTH)
    yield _figures(found)
    if found.confusion_matrix is not None:
        yield _confusion(found.confusion_matrix)
    if found.signatures:
        yield facts("computed as", dict(found.signatures), label_width=LABEL_WIDTH)


def _figures(found: Evaluation) -> RenderableType:
    measured, base = found.measured, found.baseline
    if base is None:
        shown = {name: as_figure(name, value) for name, value in measured.figures.items()}
        return facts("figures", shown, label_width=LABEL_WIDTH)
    apart = {name: astuple(each) for name, each in found.differences.items()}
    rows = ((name, base.figures[name], value, *apart[name]) for name, value in measured.figures.items())
    return figures_beside("figures", base.name, measured.name, rows)


def _confusion(found: Confusion) -> RenderableType:
    """The matrix where it fits a screen; else which classes were most often taken for which."""
    labels = found.labels
    if len(labels) <= MOST_CLASSES:
        rows = [[name, *(f"{count:,}" for count in row)] for name, row in zip(labels, found.matrix, strict=True)]
        return text_table("rows by class", ["is ╲ told", *(f">{name}" for name in labels)], rows)
    mistakes = (
        (count, labels[right], labels[told])
        for right, row in enumerate(found.matrix)
        for told, count in enumerate(row)
        if count and told != right
    )
    rows = [[right, told, f"{count:,}"] for count, right, told in nlargest(MOST_CLASSES, mistakes, key=itemgetter(0))]
    return text_table("most frequent mistakes", ("is", "told", ">rows"), rows)
