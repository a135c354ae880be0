"""`loraft report`: whether a run did any good, as a page and in a few lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from loraft import api
from loraft.cli.console import print_json, print_note, print_result, printable
from loraft.cli.options import JsonOption, argument, flag, option, refuse, trust_flag
from loraft.cli.text_tables import as_bytes, as_figure, as_measure, facts, figures_beside, label
from loraft.cli.views.progress import watching
from loraft.figures import counted

if TYPE_CHECKING:
    from loraft.reporting.model_findings import ModelFindings
    from loraft.reporting.run_report import RunReport

LABEL_WIDTH = 18


@dataclass(frozen=True)
class ReportOptions:
    """Which run is reported, and how much is asked of its model."""

    run_folder: str = argument("RUN", "The folder of a run, or of one of its checkpoints.")
    quick: bool = flag("Load no model: tell what the run wrote down.")
    data: str | None = option("FILE", "Rows to compare the model with its base on [default: those that it held out].")
    limit: int = option("N", "Read at most so many rows, evenly over all.", default=500, min=1)
    answers: int = option("N", "How many answers are shown before and after.", default=10, min=0)
    max_new_tokens: int = option("N", "The most tokens of an answer.", default=128, min=1)
    batch_size: int = option("N", "How many rows at a time: speed and memory alone.", default=8, min=1)
    output: Path | None = option("FILE", "The page [default: report.html in the run's folder].")
    trust_remote_code: bool = trust_flag()


def report(given: ReportOptions, as_json: JsonOption = False) -> None:
    """Tell whether a run did any good, and which key to change next.

    One page without scripts: the curves, where the run over-fitted, base beside trained on rows that were not learned,
    answers before and after, what was forgotten, rows with the highest loss, the layers that changed most, and which
    key of the config to change next. `loraft train` writes the page at its end with what needs no model.
    """
    refuse((given.quick and given.data is not None, "--quick asks no model: leave --data out."))
    asked = {**vars(given)}
    with watching("report") as view:
        found = api.report(asked.pop("run_folder"), **asked, observer=view)
    page = given.output or Path(found.run) / "report.html"
    if as_json:
        print_json({**found.as_dict(), "page": str(page)})
    else:
        print_note(*found.notes)
        print_result(*_drawn(found, page))


def _drawn(found: RunReport, page: Path) -> Iterator[RenderableType]:
    """The state, the losses, base beside trained, and what to change next."""
    yield facts(found.run, _about(found, page), label_width=LABEL_WIDTH)
    if found.findings is not None:
        yield from _beside(found.findings)
    yield from _next(found)


def _about(found: RunReport, page: Path) -> dict[str, object]:
    first, last = found.steps[0], found.steps[-1]
    steps = f"{last.step:,}" + (f" of {found.planned_steps:,}" if found.planned_steps is not None else "")
    shown: dict[str, object] = {"state": found.state, "steps": steps}
    shown["training loss"] = f"{as_measure(first.loss)} → {as_measure(last.loss)}"
    if found.evaluations:
        begun, ended = found.evaluations[0], found.evaluations[-1]
        shown["evaluation loss"] = (
            f"{as_measure(begun.loss)} → {as_measure(ended.loss)}, best at step {found.best_step}"
        )
        for name, value in ended.figures.items():
            before = as_figure(name, begun.figures.get(name, math.nan))
            shown[f"evaluation {label(name)}"] = f"{before} → {as_figure(name, value)}"
        after = found.over_fitted_after
        shown["over-fitted"] = "no" if after is None else f"after step {after}"
    if found.left_out:
        skipped = counted(len(found.left_out), "step")
        shown["left out"] = f"{skipped} not finite, the first of them step {found.left_out[0].step:,}"
    predicted = f", {as_bytes(found.predicted_bytes)} predicted" if found.predicted_bytes is not None else ""
    shown["memory"] = as_bytes(found.peak_bytes) + predicted
    if found.findings is not None and (text := found.findings.forgotten) is not None:
        shown["general text"] = f"loss {as_measure(text.base)} → {as_measure(text.trained)}"
    return {**shown, "page": str(page)}


def _beside(findings: ModelFindings) -> Iterator[RenderableType]:
    if findings.base is None or not findings.figures:
        return
    rows = ((name, *astuple(each)) for name, each in findings.figures.items())
    yield figures_beside(f"{findings.rows_read:,} of {findings.rows}", findings.base, "trained", rows)


def _next(found: RunReport) -> Iterator[RenderableType]:
    if not found.advice:
        yield Text("change next: none of the rules finds a key to change")
    for place, each in enumerate(found.advice):
        lead = "change next" if place == 0 else "then"
        yield Text.assemble((f"{lead}: ", "bold"), (each.key, "bold cyan"), printable(f" to {each.change}"))
        yield Padding(Text(printable(f"because {each.reason}"), style="dim"), (0, 0, 0, 2))
