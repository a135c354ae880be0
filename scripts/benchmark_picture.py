"""Draws docs/benchmarks.svg, the picture of the README, from docs/benchmarks.jsonl.

    pip install 'loraft[plot]' && .venv/bin/python scripts/benchmark_picture.py

A bar for each of the README's comparisons, of the newest line that tells it: how many times as fast as the peer loraft
is, and what share of the peer's memory it takes in the same run. The ground is left out and colours are of middling
lightness, so that the picture is readable on a light page and on a dark one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_record import RECORD, ROOT, recorded

from loraft.cli.views.plots import check_plot, picture

PICTURE = ROOT / "docs/benchmarks.svg"
SHOWN = {
    "LoRA training": ("LoRA training, 16 rows a step", "tokens/s"),
    "answers, one at a time": ("answers in bfloat16, 1 at a time", "tokens/processor s"),
    "answers, eight in a batch": ("answers in bfloat16, 8 at a time", "tokens/processor s"),
    "merging": ("merging in float32", "s"),
}
"""What each bar is called, and which figure it is of."""
INK, SPEED, MEMORY = "#7d8590", "#2f8fd0", "#d9782d"
"""Of nearly the same contrast to white and to near-black."""


@dataclass(frozen=True)
class Bar:
    """One comparison.

    Attributes:
        name: What is compared.
        long: Times as fast as the peer, or the share of the peer's memory.
        said: The figure in words, with the peer.
    """

    name: str
    long: float
    said: str


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", type=Path, default=RECORD, dest="read", help="the figures [default: %(default)s]")
    parser.add_argument("--to", type=Path, default=PICTURE, help="a .svg or a .png file [default: %(default)s]")
    options = parser.parse_args()
    check_plot(options.to)
    draw(options.to, recorded(options.read))
    print(f"wrote {options.to}")


def speeds(lines: Sequence[dict[str, Any]]) -> list[Bar]:
    """How many times as fast as the peer: a figure of seconds counts the other way round."""
    found = []
    for name, shown in SHOWN.items():
        line = newest(lines, *shown)
        ours, theirs, unit = line["value"], line["peer_value"], line["unit"].replace("processor s", "s")
        faster = theirs / ours if unit == "s" else line["ratio"]
        found.append(Bar(name, faster, f"{faster:.2f}×: {ours:g} {unit}, {line['peer']} {theirs:g}"))
    return found


def memories(lines: Sequence[dict[str, Any]]) -> list[Bar]:
    """The share of the peer's peak memory, for what has one in the run that the speed is of."""
    found = []
    for name, (measured, unit) in SHOWN.items():
        speed = newest(lines, measured, unit)
        run = [line for line in lines if all(line[key] == speed[key] for key in ("date", "machine", "command"))]
        for line in [line for line in run if line["measured"] == f"{measured}: peak memory"][-1:]:
            ours, theirs = size(line["value"]), size(line["peer_value"])
            found.append(Bar(name, line["ratio"], f"{line['ratio']:.2f}: {ours}, {line['peer']} {theirs}"))
    return found


def newest(lines: Sequence[dict[str, Any]], measured: str, unit: str) -> dict[str, Any]:
    """The last line that tells a figure."""
    return [line for line in lines if (line["measured"], line["unit"]) == (measured, unit)][-1]


def size(gigabytes: float) -> str:
    """Memory as a person says it."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


def draw(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Speed above, memory below, each with the figures in words."""
    parts = [
        ("speed (longer is better; the line is the other program)", speeds(lines), SPEED),
        ("peak memory (shorter is better)", memories(lines), MEMORY),
    ]
    with picture(path, 2, 1, inches=(8.4, 3.9)) as axes:
        figure = axes[0, 0].figure
        figure.set_facecolor("none")
        axes[0, 0].get_gridspec().set_height_ratios([len(bars) + 0.4 for _, bars, _ in parts])
        for (title, bars, colour), here in zip(parts, axes[:, 0], strict=True):
            here.set_facecolor("none")
            here.barh([bar.name for bar in bars], [bar.long for bar in bars], 0.62, color=colour)
            here.invert_yaxis()
            reach = max(1.0, *(bar.long for bar in bars))
            for row, bar in enumerate(bars):
                here.text(max(bar.long, 1.0) + reach / 80, row, bar.said, va="center_baseline", color=INK)
            here.axvline(1.0, color=INK, linewidth=1.2, linestyle="dashed", zorder=0)
            here.set_xlim(0, 2.25 * reach)
            here.set_xticks([])
            here.set_title(title, loc="left", color=INK, fontsize=11)
            here.tick_params(length=0, labelcolor=INK)
            here.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
