"""Pictures as PNG or SVG files: the one door to matplotlib, which opens no window."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from loraft.cli.console import print_either, print_result
from loraft.errors import ConfigError, RunError, lacking
from loraft.io.paths import check_output_file

KINDS = (".png", ".svg")
INK, GRID = "#222222", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind eyes too: Okabe and Ito 2008."""
DOTS_AN_INCH = 144


def check_plot(path: Path | None) -> None:
    """Refuse what no picture can be written to, before any work is done; None, where none is asked for, is no fault.

    Raises:
        ConfigError: No matplotlib, another ending than .png or .svg, or no folder.
    """
    if path is None:
        return
    if problem := lacking("matplotlib", "a picture", parameter="plot"):
        raise ConfigError.several([problem])
    if path.suffix.lower() not in KINDS:
        message, remedy = "a picture is a .png or a .svg file", "Name one that ends so."
        raise ConfigError(message, where=path, parameter="plot", remedy=remedy)
    check_output_file(path, parameter="plot", error=ConfigError)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError("cannot be written", where=path, parameter="plot")


def print_plotted(
    document: Mapping[str, Any], drawn: Iterable[RenderableType], *, as_json: bool, plot: Path | None
) -> None:
    """A document on standard output, as it is or as it is drawn, with the file of its picture where there is one."""
    print_either({**document, **({"plot": str(plot)} if plot is not None else {})}, drawn, as_json=as_json)
    if plot is not None and not as_json:
        print_result(f"wrote {plot}")


def dress(axes: Any, title: str, x: str = "", y: str = "", *, grid: str | None = "both") -> None:
    """Give axes a title and names, and a grid behind what is drawn: along `x`, `y` or `both`, or none."""
    axes.set_title(title, loc="left", color=INK)
    axes.set(xlabel=x, ylabel=y)
    if grid is not None:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


@contextmanager
def picture(
    path: Path,
    rows: int = 1,
    columns: int = 1,
    *,
    inches: tuple[float, float] = (8.0, 4.8),
    title: str | None = None,
) -> Iterator[Any]:
    """Give the axes `[rows, columns]` of a picture to draw on, which is then written.

    Raises:
        RunError: The file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    of_title = "large" if rows == columns == 1 else "medium"
    # Text of an SVG stays text, and its ids and its date are those of every start.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "loraft", "font.size": 11, "axes.titlesize": of_title}):
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
        raise RunError(f"cannot be written: {error.strerror}", where=path) from None
