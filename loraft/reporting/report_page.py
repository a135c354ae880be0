"""The page of a report: one file, without scripts and without anything from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from loraft.figures import counted
from loraft.reporting.curves import Chart, Curve, as_tick, svg_of
from loraft.reporting.findings_page import figure, findings_html, table
from loraft.reporting.run_records import LoggedEvaluation, LoggedStep
from loraft.reporting.run_report import RunReport
from loraft.version import __version__

MARK = '<meta name="generator" content="loraft report">'
"""Tells a page of a report, which may be replaced, from any other file."""
MOST_ROWS = 40
"""So many logged steps are in the table at most; metrics.jsonl has all."""
LEFT_OUT = 8
"""So many steps that were left out are named at most."""
STYLE = files("loraft.reporting") / "report_page.css"


def page_of(report: RunReport) -> str:
    """The page as HTML; every text of files and models is escaped."""
    title = f"{escape(report.run)}: did it help?"
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', MARK,
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{title}</title>",
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>", "</head>", "<body>", "<main>", f"<h1>{title}</h1>",
        *_next(report), *_facts(report), *_notes(report), "<h2>Curves</h2>", *_charts(report), *_tables(report),
        *findings_html(report.findings),
        f'<p class="quiet"><small>Made by loraft {__version__}.</small></p>',
        "</main>", "</body>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def as_memory(number: float) -> str:
    """Bytes in GB, or in MB below one."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _next(report: RunReport) -> Iterator[str]:
    """What to change next, the most pressing first."""
    if not report.advice:
        yield '<p class="next">None of the rules finds a key to change.</p>'
        return
    for place, each in enumerate(report.advice):
        lead = "Change next" if place == 0 else "Then"
        yield (
            f'<p class="next">{lead}: <code>{escape(each.key)}</code> to {escape(each.change)}.<br>'
            f'<span class="quiet">Because {escape(each.reason)}.</span></p>'
        )


def _facts(report: RunReport) -> Iterator[str]:
    steps = report.steps
    taken = f"{steps[-1].step:,}" + (f" of {report.planned_steps:,}" if report.planned_steps is not None else "")
    shown: dict[str, str] = {
        "state": report.state,
        "steps": taken,
        "epochs": f"{steps[-1].epoch:.2f}",
        "base": report.base,
        "task, method": f"{report.task}, {report.method}",
        "training loss": f"{steps[0].loss:.3f} → {steps[-1].loss:.3f}",
    }
    if report.evaluations:
        first, last = report.evaluations[0], report.evaluations[-1]
        shown["evaluation loss"] = f"{first.loss:.3f} → {last.loss:.3f}"
        for name, value in last.figures.items():
            begun = figure(name, first.figures.get(name, math.nan))
            shown[f"evaluation {name.replace('_', ' ')}"] = f"{begun} → {figure(name, value)}"
        shown["best evaluation"] = f"step {report.best_step} by {report.best_metric.replace('_', ' ')}"
        after = report.over_fitted_after
        shown["over-fitted"] = "no" if after is None else f"after step {after}"
    if report.left_out:
        named = [f"{each.step:,}" for each in report.left_out]
        shown["steps left out, not finite"] = ", ".join(named[:LEFT_OUT]) + (", …" if len(named) > LEFT_OUT else "")
    shown |= _costs(report)
    yield "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in shown.items()) + "</dl>"


def _costs(report: RunReport) -> dict[str, str]:
    """Speed, memory and gradients, in words."""
    predicted = report.predicted_bytes
    beside = f", {as_memory(predicted)} predicted" if predicted is not None else ""
    shown = {"speed": f"{report.tokens_per_second:,.0f} tokens/s", "memory": as_memory(report.peak_bytes) + beside}
    if report.ranks > 1:
        shown["memory"] += f", of the first of {report.ranks} processes"
    shown["gradient norm, median"] = f"{report.median_grad_norm:.3g}"
    if report.clipped_share is not None:
        shown["clipped"] = f"{100 * report.clipped_share:.0f} % of the logged steps, to {report.max_grad_norm:g}"
    if report.device:
        shown["device"] = report.device
    return shown


def _notes(report: RunReport) -> Iterator[str]:
    if report.notes:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>"


def charts(report: RunReport) -> Sequence[Chart]:
    """The curves: losses, other figures of a classifier or of pairs, learning rate, gradient norm, speed and memory."""
    steps, held = report.steps, report.evaluations
    best = [(report.best_step, "best")] if report.best_step is not None else []
    losses = [_curve("training", steps, [each.loss for each in steps])]
    if held:
        losses.append(_curve("evaluation", held, [each.loss for each in held]))
    limit, memory = report.max_grad_norm, report.predicted_bytes
    clipped = [(limit, f"clipped to {limit:g}")] if limit is not None and report.clipped_share else []
    predicted = [(memory / 1e9, "predicted")] if memory is not None else []
    found = [Chart("Loss, nats", losses, marks=best)]
    for name in held[-1].figures if held else ():
        shown = name.replace("_", " ")
        values = [each.figures.get(name, math.nan) for each in held]
        found.append(Chart(f"Evaluation {shown}", [_curve(shown, held, values)], marks=best))
    norms = _curve("gradient norm", steps, [each.grad_norm for each in steps])
    rates = _curve("learning rate", steps, [each.learning_rate for each in steps])
    speeds = _curve("tokens a second", steps, [each.tokens_per_second for each in steps])
    sizes = _curve("GB", steps, [each.peak_bytes / 1e9 for each in steps])
    return [
        *found,
        Chart("Learning rate", [rates]),
        Chart("Gradient norm before clipping", [norms], levels=clipped),
        Chart("Tokens a second", [speeds], from_zero=True),
        Chart("Most memory held, GB", [sizes], levels=predicted, from_zero=True),
    ]


def _curve(name: str, at: Sequence[LoggedStep | LoggedEvaluation], values: Sequence[float]) -> Curve:
    style = "held" if at and isinstance(at[0], LoggedEvaluation) else "train"
    return Curve(name, [(each.step, value) for each, value in zip(at, values, strict=True)], style)


def _charts(report: RunReport) -> Iterator[str]:
    yield '<div class="charts">'
    for number, chart in enumerate(charts(report)):
        keys = ""
        if len(chart.curves) > 1:
            keys = "".join(f' <span class="key {each.style}"></span> {escape(each.name)}' for each in chart.curves)
        caption = f"<figcaption>{escape(chart.title)}, by step{keys}</figcaption>"
        yield f"<figure>{svg_of(chart, f'chart-{number}')}{caption}</figure>"
    yield "</div>"


def _tables(report: RunReport) -> Iterator[str]:
    """The figures of the curves, for those who cannot see them."""
    steps = report.steps
    places = sorted({round(n * (len(steps) - 1) / (MOST_ROWS - 1)) for n in range(MOST_ROWS)})
    shown = [steps[place] for place in places]
    some = f", {len(shown)} of {counted(len(steps), 'logged step')}" if len(shown) < len(steps) else ""
    yield f"<details><summary>The figures as a table{some}</summary>"
    if report.evaluations:
        names = list(report.evaluations[-1].figures)
        lines = [
            (
                f"{e.step:,}",
                f"{e.epoch:.2f}",
                f"{e.loss:.4f}",
                *(f"{e.figures.get(name, math.nan):.4f}" for name in names),
            )
            for e in report.evaluations
        ]
        yield table(("step", "epoch", "evaluation loss", *(name.replace("_", " ") for name in names)), lines)
    headings = ("step", "epoch", "training loss", "gradient norm", "learning rate", "tokens/s", "memory")
    yield table(
        headings,
        [
            (
                f"{e.step:,}", f"{e.epoch:.2f}", f"{e.loss:.4f}", f"{e.grad_norm:.4g}", as_tick(e.learning_rate),
                f"{e.tokens_per_second:,.0f}", as_memory(e.peak_bytes),
            )
            for e in shown
        ],
    )  # fmt: skip
    yield "</details>"
