"""What the model tells, as a part of the page: base beside trained, answers, what was forgotten, rows and layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from loraft.figures import counted
from loraft.reporting.model_findings import AnswerBeside, FigureBeside, HardRow, ModelFindings
from loraft.tasks import METRIC_FACTS

NOT_ASKED = (
    "What needs the model is not here: base beside trained, answers before and after, what was forgotten, rows with "
    "the highest loss, and the layers that changed most. <code>loraft report RUN</code> adds it."
)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where the screen is narrow; columns but `texts` are numbers."""

    def cells(row: Sequence[str], kind: str) -> str:
        text, number = 'class="text"' if kind == "td" else "", 'class="n"'
        return "".join(
            f"<{kind} {text if place in texts else number}>{escape(cell)}</{kind}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def figure(name: str, value: float, *, signed: bool = False) -> str:
    """A figure as its metric says: a share in per cent, any other as it is; a dash for what is not finite."""
    if not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f} %" if METRIC_FACTS[name].look == "share" else f"{value:{sign}.4f}"


def findings_html(findings: ModelFindings | None) -> Iterator[str]:
    """The part of the page that the model tells, or how to have it."""
    if findings is None:
        yield f'<p class="quiet">{NOT_ASKED}</p>'
        return
    yield from _beside(findings)
    yield from _forgotten(findings)
    yield from _answers(findings.answers, findings.base or "base")
    yield from _hard(findings)
    yield from _moved(findings)


def verdict(loss: FigureBeside) -> str:
    """Whether training helped, by the loss on rows that were not learned and the interval of its difference."""
    if math.isnan(loss.low):
        return "nothing can be said: a loss is not finite"
    if loss.high < 0:
        return "it helped: the loss is lower, and so is the whole interval"
    return "it made things worse: the whole interval lies above 0" if loss.low > 0 else "nobody can tell: it holds 0"


def _beside(findings: ModelFindings) -> Iterator[str]:
    if findings.base is None or not findings.figures:
        return
    yield f"<h2>{escape(findings.base)} beside trained</h2>"
    loss = findings.figures.get("loss")
    said = f"{counted(findings.rows_read, 'row')} of {findings.rows}"
    yield f'<p class="quiet">{escape(said)}{"" if loss is None else f"; {escape(verdict(loss))}"}.</p>'
    rows = [(name.replace("_", " "), *_figures(name, each)) for name, each in findings.figures.items()]
    yield table(("", "base", "trained", "difference", "95 % interval"), rows, texts=(0,))


def _figures(name: str, each: FigureBeside) -> Sequence[str]:
    apart, low, high = (figure(name, value, signed=True) for value in (each.difference, each.low, each.high))
    return figure(name, each.base), figure(name, each.trained), apart, f"{low} to {high}"


def _forgotten(findings: ModelFindings) -> Iterator[str]:
    text = findings.forgotten
    if text is None:
        return
    yield "<h2>What was forgotten</h2>"
    yield (
        f"<p>The loss of a general text of {text.tokens:,} tokens, which is no part of the rows, was {text.base:.4f} "
        f"nats a token and is {text.trained:.4f}: {text.trained - text.base:+.4f}.</p>"
    )


def _answers(answers: Sequence[AnswerBeside], base: str) -> Iterator[str]:
    if not answers:
        return
    yield "<h2>Answers before and after</h2>"
    for each in answers:
        columns = {"reference": each.reference, base: each.base, "trained": each.trained}
        shown = "".join(
            f"<div><small>{escape(name)}</small><pre>{escape(text)}</pre></div>"
            for name, text in columns.items()
            if text is not None
        )
        yield f'<div class="answer"><small>{escape(each.row)}</small><pre>{escape(each.asked)}</pre>'
        yield f'<div class="beside">{shown}</div></div>'


def _hard(findings: ModelFindings) -> Iterator[str]:
    if not findings.hard_learned and not findings.hard_held_out:
        return
    yield "<h2>Rows with the highest loss</h2>"
    yield '<p class="quiet">Look at them: such rows are often mislabelled, cut, or in another language.</p>'
    if findings.hard_learned:
        read, there = findings.learned_read, findings.learned_rows
        yield f"<h3>Trained on ({f'{read:,} of ' if read < there else ''}{there:,} read)</h3>"
        yield _hard_table(findings.hard_learned)
    if findings.hard_held_out:
        yield f"<h3>{escape(str(findings.rows)).capitalize()}</h3>"
        yield _hard_table(findings.hard_held_out)


def _hard_table(rows: Sequence[HardRow]) -> str:
    if any(row.label is not None for row in rows):
        lines = [(row.row, f"{row.loss:.3f}", row.label or "", row.told or "", row.text) for row in rows]
        return table(("row", "loss", "its class", "taken for", "text"), lines, texts=(0, 2, 3, 4))
    return table(("row", "loss", "text"), [(row.row, f"{row.loss:.3f}", row.text) for row in rows], texts=(0, 2))


def _moved(findings: ModelFindings) -> Iterator[str]:
    if not findings.moved:
        return
    yield "<h2>Layers that changed most</h2>"
    rows = [
        (each.layer, f"{each.norm:.4g}", "–" if each.relative is None else f"{100 * each.relative:.2f} %")
        for each in findings.moved
    ]
    yield table(("layer", "‖ΔW‖", "of ‖W‖"), rows, texts=(0,))
