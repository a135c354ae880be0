"""Recurrent networks beside what was fine-tuned, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from loraft.cli.console import printable
from loraft.cli.text_tables import (
    NUMBERS,
    as_bytes,
    as_count,
    as_duration,
    as_figure,
    as_measure,
    facts,
    figures_beside,
    label,
    text_table,
    titled,
)
from loraft.cli.views.plots import COLOURS, dress, picture
from loraft.cli.wording import in_options
from loraft.figures import counted

if TYPE_CHECKING:
    from loraft.baselines.baseline_report import BaselineReport, ComparedNetwork
    from loraft.baselines.train_recurrent import RecurrentTraining

DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200)
LABEL_WIDTH = 20


SECTIONS = ("baseline", "training", "costs", "quality", "gradient", "samples", "found")


def baseline_view(report: BaselineReport, only: Container[str] = SECTIONS) -> Iterator[RenderableType]:
    """The sections of the report, drawn."""
    return (section for name, section in _sections(report) if name in only)


def _sections(report: BaselineReport) -> Iterator[tuple[str, RenderableType]]:
    about: dict[str, object] = {
        "task": report.task,
        "compared with": report.compared_with,
        "rows": f"{report.train_rows:,} learned, {report.rows:,} held out",
    }
    yield "baseline", facts("baseline", about, label_width=LABEL_WIDTH)
    for trained in report.training:
        yield "training", facts(f"{trained.cell} from scratch", _training(trained), label_width=LABEL_WIDTH)
    yield "costs", _costs(report.networks)
    if report.differences:
        for cell in report.differences:
            yield "quality", _quality(report, cell)
    else:
        yield "quality", _figures_alone(report.networks)
    if report.gradient.networks:
        yield "gradient", _gradient(report)
    for sample in report.samples:
        asked = sample.asked if isinstance(sample.asked, str) else _last_turn(sample.asked)
        answers = {"asked": asked, "right": sample.reference, **sample.answers}
        yield "samples", facts(f"sample {sample.row}", answers, label_width=LABEL_WIDTH)
    yield (
        "found",
        titled("found", Group(*(Text(printable(f"· {each}")) for each in map(in_options, report.findings))), indent=2),
    )


def _last_turn(asked: object) -> object:
    turns = asked if isinstance(asked, list) else []
    return turns[-1]["content"] if turns else asked


def _training(found: RecurrentTraining) -> dict[str, object]:
    tried = ", ".join(f"{each.learning_rate:g} ({each.loss:.3f})" for each in found.tried)
    ended = "a plateau" if found.plateau else "the most rounds"
    return {
        "sizes": f"embedding {found.embedding}, hidden {found.hidden}, dropout {found.dropout:g}",
        "known tokens": found.known_tokens,
        "rates tried (loss)": f"{tried}: {found.learning_rate:g} kept",
        "rounds": f"{found.rounds} to {ended}; the weights of round {found.best_round}",
        "training": f"{as_duration(found.seconds)}, {as_count(round(found.tokens_per_second))} tokens/s",
    }


def _costs(networks: Sequence[ComparedNetwork]) -> RenderableType:
    """What each network has and takes, a column each."""
    rows = [
        ["parameters", *(as_count(each.parameters) for each in networks)],
        ["of them trained", *(as_count(each.trained_parameters) for each in networks)],
        ["reads, tokens/s", *(as_count(round(each.tokens_per_second)) for each in networks)],
    ]
    if any(each.row_seconds is not None for each in networks):
        rows.append(["one row alone, ms", *(f"{1000 * (each.row_seconds or 0):.2f}" for each in networks)])
    if padding := networks[0].padded.padding:
        rows.append(["loss of a row alone", *(as_measure(each.padded.loss_alone) for each in networks)])
        rows.append([f"padded by {padding}", *(as_measure(each.padded.loss_padded) for each in networks)])
    written = [each.writing for each in networks if each.writing is not None]
    if written:
        most = max(each.tokens for each in written)
        alike = all(each.tokens == most for each in written)
        rows += [
            [
                f"writes {most} tokens",
                *(f"{each.seconds:.2f} s" + ("" if alike else f" ({each.tokens})") for each in written),
            ],
            ["remembers then", *(as_bytes(each.state_bytes) for each in written)],
            ["more a token", *(as_bytes(each.bytes_a_token) for each in written)],
        ]
    return text_table("what each takes", ["", *(NUMBERS + each.name for each in networks)], rows)


def _quality(report: BaselineReport, cell: str) -> RenderableType:
    """The figures of what stands beside and of one network, and how sure the difference is."""
    beside = report.networks[0]
    network = next(each for each in report.networks if each.name == cell)
    rows = (
        (name, network.figures[name], beside.figures[name], *astuple(apart))
        for name, apart in report.differences[cell].items()
    )
    return figures_beside("quality on the held-out rows", cell, beside.name, rows)


def _figures_alone(networks: Sequence[ComparedNetwork]) -> RenderableType:
    names = networks[0].figures
    rows = [[label(name), *(as_figure(name, each.figures[name]) for each in networks)] for name in names]
    return text_table("quality on the held-out rows", ["", *(NUMBERS + each.name for each in networks)], rows)


def _gradient(report: BaselineReport) -> RenderableType:
    """The gradient at some distances, by that at distance 1."""
    reached = report.gradient
    most = len(reached.networks[0].relative)
    distances = [each for each in DISTANCES if each < most] + [most]
    rows = [[str(at), *(_power(each.relative[at - 1]) for each in reached.networks)] for at in distances]
    rows.append(["× a token", *(f"{each.factor:.3f}" for each in reached.networks)])
    texts = f"{counted(reached.texts, 'text')} of {reached.length} tokens"
    title = f"gradient of the last loss by distance, relative ({texts})"
    return text_table(title, ["tokens back", *(NUMBERS + each.name for each in reached.networks)], rows)


def _power(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 and math.isfinite(value) else f"{value:.0e}"


def plot_baseline(report: BaselineReport, path: Path) -> None:
    """Draw the gradients by distance on a logarithmic axis; dashed, and in the same colour, where nothing was trained.

    Raises:
        RunError: The file cannot be written.
    """
    colours: dict[str, str] = {}
    with picture(path) as ((axes,),):
        for each in report.gradient.networks:
            network, untrained, _ = each.name.partition(",")
            colour = colours.setdefault(network, COLOURS[len(colours)])
            style, width = ("--", 1.4) if untrained else ("-", 2.0)
            places = range(1, len(each.relative) + 1)
            axes.plot(places, each.relative, style, color=colour, linewidth=width, label=each.name)
        axes.set_yscale("log")
        axes.legend(frameon=False)
        title = "How far the gradient of the last token's loss reaches"
        dress(axes, title, "tokens into the past", "norm, relative to the last token")
