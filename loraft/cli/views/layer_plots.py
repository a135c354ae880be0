"""What `inspect-layers --plot` draws: activations and attention, gradients, or an adapter's updates, by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from loraft.cli.text_tables import Document
from loraft.cli.views.inside_view import MUCH
from loraft.cli.views.plots import COLOURS, dress, picture

EMPTY = "#eeeeee"
"""Where there is nothing to show."""
MOST_TICKS = 16
Places = Sequence[tuple[str, int]]


def plot_layers(path: Path, document: Document) -> None:
    """Draw the part of a document that was asked for: activations, gradients, or else what adapters changed.

    Raises:
        RunError: The file cannot be written.
    """
    if "activations" in document:
        _plot_activations(path, document["activations"])
    elif "gradients" in document:
        _plot_gradients(path, document["gradients"])
    else:
        _plot_updates(path, document["adapters"])


def _plot_activations(path: Path, found: Document) -> None:
    """The residual stream of each stack, and maps of heads by layers; cross-attention is a stack's second set."""
    parts = [(stack["name"], "heads") for stack in found["stacks"]]
    if any(layer["cross_heads"] for layer in found["layers"]):
        parts.append(("decoder", "cross_heads"))
    alone = len(parts) == 1
    rows, columns, inches = (2, 2, (11.0, 7.6)) if alone else (len(parts), 4, (19.0, 3.9 * len(parts)))
    with picture(path, rows, columns, inches=inches, title=f"{found['model']}: while it reads") as axes:
        for number, (stack, key) in enumerate(parts):
            layers = [layer for layer in found["layers"] if layer["stack"] == stack]
            panels = axes.flatten() if alone else axes[number]
            name = "" if alone else f"{stack}, cross-attention: " if key == "cross_heads" else f"{stack}: "
            _stream(panels[0], layers if key == "heads" else (), name)
            _heads(panels[1], layers, key, "entropy_share", f"{name}entropy, of the greatest possible", 1.0)
            _heads(panels[2], layers, key, "first_token", f"{name}attention at the first token", 1.0)
            far = f"{name}tokens away (grey: most at the first)"
            _heads(panels[3], layers, key, "distance_past_first", far, away=lambda head: head["first_token"] > MUCH)


def _stream(axes: Any, layers: Sequence[Document], name: str) -> None:
    if not layers:
        axes.set_axis_off()
        return
    index = [layer["index"] for layer in layers]
    lines = (("norm", "tokens after the first (mean)"), ("first_norm", "the first token"))
    for number, (key, label) in enumerate(lines):
        axes.plot(index, [layer[key] for layer in layers], "-o", markersize=3, color=COLOURS[number], label=label)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    dress(axes, f"{name}‖h‖ of the residual stream", "layer")


def _heads(
    axes: Any,
    layers: Sequence[Document],
    key: str,
    value: str,
    title: str,
    most: float | None = None,
    away: Callable[[Document], bool] = lambda head: False,
) -> None:
    """A map of one number of each head; those that are left out of it, and what is no number, are grey."""
    grid = [[None if away(head) else head[value] for head in layer[key]] for layer in layers]
    rows = max(map(len, grid), default=0)
    by_head = [[_number(column[head]) if head < len(column) else math.nan for column in grid] for head in range(rows)]
    if not any(math.isfinite(each) for row in by_head for each in row):
        axes.set_axis_off()
        return
    _map(axes, by_head, most, [layer["index"] for layer in layers], list(range(rows)))
    dress(axes, title, "layer", "head", grid=None)


def _plot_gradients(path: Path, found: Document) -> None:
    stacks = list(dict.fromkeys(layer["stack"] for layer in found["layers"]))
    inches = (11.0 if len(stacks) == 1 else 15.0, 4.6 * len(stacks))
    title = f"{found['trained'] or found['model']}, {found['method']}: gradients of one batch"
    with picture(path, len(stacks), 2, inches=inches, title=title) as axes:
        for row, stack in zip(axes, stacks, strict=True):
            layers = [layer for layer in found["layers"] if layer["stack"] == stack]
            name = "" if len(stacks) == 1 else f"{stack}: "
            course = next((each for each in found["courses"] if each["stack"] == stack), None)
            known = course is not None and course["ratio"] is not None
            told = f"\nfirst to last {course['ratio']:.3g}: {course['course']}" if course and known else ""
            _levels(row[0], layers, "stream_norm", f"{name}of the residual stream{told}", 0)
            _levels(row[1], layers, "norm", f"{name}of what is trained", 1)


def _levels(axes: Any, layers: Sequence[Document], key: str, title: str, colour: int) -> None:
    index, values = [layer["index"] for layer in layers], [_number(layer[key]) for layer in layers]
    axes.plot(index, values, "-o", markersize=4, color=COLOURS[colour])
    axes.set_xlim(index[0] - 0.5, index[-1] + 0.5)
    if any(value > 0 for value in values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    dress(axes, title, "layer", "norm of the gradient")


def _plot_updates(path: Path, adapters: Sequence[Document]) -> None:
    """Of each adapter a bar a layer, and below it a map of modules by layers; all have one scale."""
    adapters = [adapter for adapter in adapters if adapter["layers"]]
    key = "relative" if all(adapter["relative"] is not None for adapter in adapters) else "norm"
    scale = [max(_finite(adapters, part, key)) for part in ("layers", "modules")]
    most = max(len({each["name"] for each in adapter["modules"] if each["index"] is not None}) for adapter in adapters)
    inches = (11.0, (2.6 + 1.6 + 0.32 * most) * len(adapters))
    with picture(path, 2 * len(adapters), 1, inches=inches) as axes:
        for number, adapter in enumerate(adapters):
            _updates(axes[2 * number][0], axes[2 * number + 1][0], adapter, key, scale)


def _finite(adapters: Sequence[Document], part: str, key: str) -> Iterator[float]:
    values = (_number(each[key]) for adapter in adapters for each in adapter[part])
    return (value for value in values if math.isfinite(value))


def _updates(bars: Any, grid: Any, adapter: Document, key: str, scale: Sequence[float]) -> None:
    inside = [module for module in adapter["modules"] if module["index"] is not None]
    places = list(dict.fromkeys((module["stack"], module["index"]) for module in inside))
    factor, unit = (100.0, "‖ΔW‖ / ‖W‖ in %") if key == "relative" else (1.0, "‖ΔW‖")
    moved = {(layer["stack"], layer["index"]): _number(layer[key]) * factor for layer in adapter["layers"]}
    bars.bar(range(len(places)), [moved.get(place, math.nan) for place in places], color=COLOURS[0])
    bars.set(xlim=(-0.5, len(places) - 0.5), ylim=(0, 1.05 * factor * scale[0] or 1))
    names = list(dict.fromkeys(module["name"] for module in inside))
    cells = {(module["name"], module["stack"], module["index"]): _number(module[key]) * factor for module in inside}
    rows = [[cells.get((name, *place), math.nan) for place in places] for name in names]
    words = _words(places)
    _set(bars.set_xticks, words)
    _map(grid, rows, factor * scale[1] or 1, words, names)
    dress(bars, f"adapter {adapter['name']}: how far each layer moved, {unit}", "")
    dress(grid, f"by module, {unit}", "layer", grid=None)


def _words(places: Places) -> list[str]:
    """The layers' names: numbers, with the stack where there are several."""
    several = len({stack for stack, _ in places}) > 1
    return [f"{stack[:3]} {index}" if several else str(index) for stack, index in places]


def _map(
    axes: Any, rows: Sequence[Sequence[float]], most: float | None, columns: Sequence[object], names: Sequence[object]
) -> None:
    axes.set_facecolor(EMPTY)
    image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
    axes.get_figure().colorbar(image, ax=axes, pad=0.01)
    _set(axes.set_xticks, columns)
    _set(axes.set_yticks, names)


def _set(ticks: Callable[..., object], words: Sequence[object]) -> None:
    step = math.ceil(len(words) / MOST_TICKS)
    ticks(range(0, len(words), step), list(map(str, words))[::step])


def _number(value: float | None) -> float:
    """What there is to draw; a gap where there is nothing, or what is no number."""
    return math.nan if value is None else value
