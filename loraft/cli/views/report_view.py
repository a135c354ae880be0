"""A report in a few lines; the page has the curves, the answers and the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.text_tables import as_bytes, as_figure, as_measure, facts, figures_beside, label
from loraft.figures import counted

if TYPE_CHECKING:
    from loraft.reporting.model_findings import ModelFindings
    from loraft.reporting.run_report import RunReport

LABEL_WIDTH = 18


def report_view(found: RunReport, page: Path) -> Iterator[RenderableType]:
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
