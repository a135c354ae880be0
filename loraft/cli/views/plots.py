"""Pictures as PNG or SVG files: the one door to matplotlib, which opens no window."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from loraft.cli.console import print_json, print_result
from loraft.errors import ConfigError, RunError, lacking

KINDS = (".png", ".svg")
INK, GRID = "#222222", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind eyes too: Okabe and Ito 2008."""
DOTS_AN_INCH = 144


def check_plot(path: Path) -> None:
    """Refuse what no picture can be written to, before any work is done.

    Raises:
        ConfigError: No matplotlib, another ending than .png or .svg, or no folder.
    """
    said = {"where": str(path), "parameter": "plot"}
    if problem := lacking("matplotlib", "a picture", parameter="plot"):
        raise ConfigError.several([problem])
    if path.suffix.lower() not in KINDS:
        raise ConfigError("a picture is a .png or a .svg file", remedy="Name one that ends so.", **said)
    if path.is_dir():
        raise ConfigError("is a folder, not a file", **said)
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", remedy="Make it first.", **said)
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError("cannot be written", **said)


def print_plotted(
    document: Mapping[str, Any], drawn: Iterable[RenderableType], *, as_json: bool, plot: Path | None
) -> None:
    """A document on standard output, as it is or as it is drawn, with the file of its picture where there is one."""
    if as_json:
        print_json({**document, **({"plot": str(plot)} if plot is not None else {})})
        return
    print_result(*drawn)
    if plot is not None:
        print_result(f"wrote {plot}")


@dataclass(frozen=True)
class PlottedLine:
    """A named line; `number` is the colour's, by which a dashed line can have that of another one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    number: int = 0
    dashed: bool = False


def plot_lines(
    path: Path, lines: Sequence[PlottedLine], *, title: str, x: str, y: str, logarithmic: tuple[str, ...] = ()
) -> None:
    """Draw named lines; `logarithmic` are the axes, `x` or `y`, on which a factor is a distance.

    Raises:
        RunError: The file cannot be written.
    """
    with picture(path, inches=(8.0, 4.8)) as ((axes,),):
        for line in lines:
            style, colour = "--" if line.dashed else "-", COLOURS[line.number % len(COLOURS)]
            axes.plot(line.x, line.y, style, color=colour, linewidth=1.4 if line.dashed else 2.0, label=line.name)
        axes.set_title(title, loc="left", color=INK)
        axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in logarithmic})
        axes.grid(color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def plot_stacks(
    path: Path, bars: Mapping[str, Mapping[str, float]], marks: Mapping[str, float], *, title: str, y: str, marked: str
) -> None:
    """Draw a bar of stacked parts for each name, and across it the value that it has in `marks`, called `marked`.

    Raises:
        RunError: The file cannot be written.
    """
    names = list(bars)
    with picture(path, inches=(8.0, 4.8)) as ((axes,),):
        floor = [0.0] * len(names)
        for number, part in enumerate(dict.fromkeys(part for parts in bars.values() for part in parts)):
            heights = [bars[name].get(part, 0.0) for name in names]
            axes.bar(names, heights, 0.6, bottom=floor, color=COLOURS[number % len(COLOURS)], label=part)
            floor = [below + height for below, height in zip(floor, heights, strict=True)]
        begins = [names.index(name) - 0.38 for name in marks]
        ends = [begin + 0.76 for begin in begins]
        axes.hlines([*marks.values()], begins, ends, INK, "dashed", linewidth=1.8, label=marked)
        axes.set_title(title, loc="left", color=INK)
        axes.set_ylabel(y)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()  # from above to below, as the parts lie
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


@contextmanager
def picture(
    path: Path, rows: int = 1, columns: int = 1, *, inches: tuple[float, float], title: str | None = None
) -> Iterator[Any]:
    """Give the axes `[rows, columns]` of a picture to draw on, which is then written.

    Raises:
        RunError: The file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text of an SVG stays text, and its ids and its date are those of every start.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "loraft", "font.size": 11}):
        figure = Figure(figsize=inches, dpi=DOTS_AN_INCH, facecolor="white", layout="constrained")
        if title is not None:
            figure.suptitle(title, x=0.01, horizontalalignment="left", color=INK)
        yield figure.subplots(rows, columns, squeeze=False)
        drawn = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else None)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", where=str(path)) from None
