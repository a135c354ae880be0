"""Curves are well-formed SVG inside their frame, whatever the values are."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from loraft.reporting.curves import HEIGHT, MOST_POINTS, WIDTH, Chart, Curve, as_tick, svg_of, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart) -> ET.Element:
    return ET.fromstring(svg_of(chart, "c").replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))


@pytest.mark.parametrize(
    "values", [[3.0, 2.0, 1.0], [1.0], [0.0, 0.0], [1e-5, 2e-4], [1e9, 3e12], [-1.0, math.nan, math.inf, 2.0]]
)
def test_every_point_lies_inside(values: list[float]) -> None:
    chart = Chart("t", [Curve("a", list(enumerate(values)), "train")], marks=[(0, "best")], levels=[(1.0, "x")])
    svg = drawn(chart)
    points = [pair.split(",") for line in svg.iter(f"{SVG}polyline") for pair in line.attrib["points"].split()]
    assert len(points) == sum(map(math.isfinite, values))
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in points)
    told = [svg.find(f"{SVG}{name}").text for name in ("title", "desc")]  # type: ignore[union-attr]
    assert told == ["t", chart.description]
    assert svg.attrib["aria-labelledby"] == "c-title c-desc"


def test_a_chart_without_points_says_so() -> None:
    svg = drawn(Chart("<t>", [Curve("a", [(1, math.nan)], "train")]))
    assert [text.text for text in svg.iter(f"{SVG}text")] == ["nothing was logged"]
    assert svg.find(f"{SVG}title").text == "<t>"  # type: ignore[union-attr]


def test_higher_values_lie_higher_and_later_steps_further_right() -> None:
    (line,) = drawn(Chart("t", [Curve("a", [(1, 1.0), (5, 3.0)], "train")])).iter(f"{SVG}polyline")
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert x2 > x1
    assert y2 < y1


def test_an_axis_from_zero_begins_there() -> None:
    curve = Curve("a", [(1, 10.0), (2, 10.1)], "train")
    texts = [text.text for text in drawn(Chart("t", [curve], from_zero=True)).iter(f"{SVG}text")]
    assert "0" in texts
    assert "0" not in [text.text for text in drawn(Chart("t", [curve])).iter(f"{SVG}text")]


def test_of_many_points_the_means_of_neighbours_are_drawn() -> None:
    found = thinned([(step, float(step)) for step in range(10_000)])
    assert len(found) == MOST_POINTS
    assert found[-1][0] == 9999
    assert found[-1][1] == pytest.approx(9987.0)
    assert math.fsum(value for _, value in found) / MOST_POINTS == pytest.approx(4999.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_tick_is_short() -> None:
    given = (0, 0.5, 2, 20_000, 1.5e6, 0.0002, 3.25e-5, -0.0001)
    assert [as_tick(each) for each in given] == ["0", "0.5", "2", "20k", "1.5M", "2e-4", "3.2e-5", "-1e-4"]
