"""Curves over optimizer steps as inline SVG: small, without scripts, in the colours of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30
MOST_POINTS = 400
"""So many points of a curve are drawn at most, each the mean of those around it."""

Point = tuple[float, float]
"""A step, and the value there."""


@dataclass(frozen=True)
class Curve:
    """One curve: its name, its points by ascending step, and the class of the page's style that it is drawn in."""

    name: str
    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        marks: Steps that a line stands at, each with what it says.
        levels: Values that a line lies at, each with what it says.
        from_zero: The values are shares of something whole, and their axis begins at 0.
    """

    title: str
    curves: Sequence[Curve]
    marks: Sequence[tuple[float, str]] = ()
    levels: Sequence[tuple[float, str]] = ()
    from_zero: bool = False

    @property
    def description(self) -> str:
        """Where each curve begins and ends, and its lowest and highest value, for those who cannot see it."""
        said = []
        for curve in self.curves:
            if not curve.points:
                continue
            (first, begun), (last, ended) = curve.points[0], curve.points[-1]
            values = [value for _, value in curve.points]
            said.append(
                f"{curve.name} from {as_tick(begun)} at step {first:g} to {as_tick(ended)} at step {last:g}, between "
                f"{as_tick(min(values))} and {as_tick(max(values))}"
            )
        return "; ".join(said)


@dataclass(frozen=True)
class Axes:
    """The steps and values that a chart spans, and where they lie in it."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """Where a step lies, from the left."""
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Where a value lies, from the top."""
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def svg_of(chart: Chart, name: str) -> str:
    """The chart as an SVG element, whose title and description have ids that begin with `name`.

    Values that are not finite are left out; a chart without any says so in its place.
    """
    curves = [Curve(each.name, thinned(each.points), each.style) for each in chart.curves]
    points = [point for curve in curves for point in curve.points]
    head = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(chart.title)}</title>'
        f'<desc id="{name}-desc">{escape(chart.description)}</desc>'
    )
    if not points:
        return f'{head}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="mid">nothing was logged</text></svg>'
    values = [value for _, value in points] + [value for value, _ in chart.levels] + [0.0] * chart.from_zero
    steps = [step for step, _ in points]
    axes = Axes(*_apart(min(steps), max(steps)), *_roomy(min(values), max(values)))
    parts = [*_grid(axes), *_levels(chart, axes), *_marks(chart, axes), *(_line(each, axes) for each in curves)]
    return head + "".join(parts) + "</svg>"


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most 400 of the points whose value is finite: of more, the means of as many runs of neighbours."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= MOST_POINTS:
        return finite
    ends = [round(place * len(finite) / MOST_POINTS) for place in range(MOST_POINTS + 1)]
    groups = [finite[start:stop] for start, stop in pairwise(ends)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most so many: multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def as_tick(value: float) -> str:
    """A value on an axis: `20k`, `0.5`, `2e-4`."""
    size = abs(value)
    if size >= 1e4:
        power, end = next((10.0**n, sign) for n, sign in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if size >= 10.0**n)
        return f"{value / power:.3g}{end}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def _apart(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis: one value alone has some room on both sides."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _roomy(low: float, high: float) -> tuple[float, float]:
    """The ends of the axis of values, with some room; from 0 where that is near."""
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low <= 0.5 * high else low - room), high + room


def _grid(axes: Axes) -> Iterator[str]:
    for value in ticks(axes.low, axes.high):
        y = axes.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{as_tick(value)}</text>'
    for step in ticks(axes.first, axes.last):
        yield f'<text class="mid" x="{axes.x(step):.1f}" y="{HEIGHT - 10}">{as_tick(step)}</text>'


def _levels(chart: Chart, axes: Axes) -> Iterator[str]:
    for value, said in chart.levels:
        y = axes.y(value)
        yield f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{WIDTH - RIGHT}" y="{y - 4:.1f}">{escape(said)}</text>'


def _marks(chart: Chart, axes: Axes) -> Iterator[str]:
    for step, said in chart.marks:
        x = axes.x(step)
        anchor, place = ("end", x - 4) if x > WIDTH / 2 else ("begin", x + 4)
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text class="{anchor}" x="{place:.1f}" y="{TOP + 10}">{escape(said)}</text>'


def _line(curve: Curve, axes: Axes) -> str:
    places = [(axes.x(step), axes.y(value)) for step, value in curve.points]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places) if len(places) <= 30 else ""
    return f'<g class="{curve.style}"><polyline points="{drawn}"/>{dots}</g>'
