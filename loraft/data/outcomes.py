"""What becomes of a row on its way to tokens: examples, too long, nothing to train, or not rendered at all.

This module knows the order of rendering, tokenizing and cutting, for a few rows or a million, in this process or
another. It refuses to know files, and what is done about a row that did not come through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from loraft.config.schema import DataSection, DataSource
from loraft.data.examples import Example, PairExample
from loraft.data.formats import Record
from loraft.data.rendering import RowRenderer
from loraft.errors import DataError, Problem

__all__ = ["Outcome", "Wanted", "outcomes", "wanted_of"]


@dataclass(frozen=True)
class Wanted:
    """What the config says of the rows of a source.

    Attributes:
        limits: The section that says how long a row may be.
        done: What is done with a longer one: drop, truncate, split or error.
        columns: Our column names: theirs, for errors.
    """

    limits: DataSection
    done: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row.

    Attributes:
        examples: The examples that it gives, those without a trained token left out.
        lengths: The tokens of each part of it before any is cut, of its sources where there are targets.
        target_lengths: The tokens of their targets.
        too_long: How one exceeds the limits; None where none does.
        untrained: It was kept, or cut, and no token is left to train.
        problems: Why it could not be rendered.
        findings: What a person should know of it, each with what can be done.
    """

    examples: tuple[Example, ...] = ()
    lengths: tuple[int, ...] = ()
    target_lengths: tuple[int, ...] = ()
    too_long: Problem | None = None
    untrained: bool = False
    problems: tuple[Problem, ...] = ()
    findings: tuple[str, ...] = ()


def wanted_of(source: DataSource, data: DataSection, row_format: str) -> Wanted:
    """What `data` says of the rows of `source`: auto splits plain text and drops the rest."""
    auto = "split" if row_format == "text" else "drop"
    return Wanted(data, auto if data.on_overlength == "auto" else data.on_overlength, source.columns)


def outcomes(renderer: RowRenderer, records: Sequence[Record], places: Sequence[str], wanted: Wanted) -> list[Outcome]:
    """What becomes of records, one outcome each, in their order.

    Args:
        renderer: The one way from records to tokens.
        records: What the rows say.
        places: Where each of them stands.
        wanted: What the config says of them.
    """
    problems: dict[int, tuple[Problem, ...]] = {}
    rendered: list[object] = []
    counts: list[int] = []
    for index, (record, place) in enumerate(zip(records, places, strict=True)):
        parts: list[object] = []
        try:
            parts = [renderer.render(part) for part in renderer.parts(record)]
        except DataError as error:
            problems[index] = tuple(
                replace(p, where=place, key=wanted.columns.get(p.key or "", p.key)) for p in error.problems
            )
        rendered += parts
        counts.append(len(parts))
    where = [place for place, count in zip(places, counts, strict=True) for _ in range(count)]
    rows = zip(renderer.examples(rendered, where), rendered, strict=True)
    each = [list(islice(rows, count)) for count in counts]
    return [
        Outcome(problems=problems[index]) if index in problems else _outcome(renderer, parts, wanted)
        for index, parts in enumerate(each)
    ]


def _outcome(renderer: RowRenderer, parts: Sequence[tuple[Example, object]], wanted: Wanted) -> Outcome:
    pieces: list[Example] = []
    too_long: Problem | None = None
    for example, rendered in parts:
        exceeds = renderer.too_long(example, wanted.limits)
        if exceeds is None:
            pieces.append(example)
            continue
        too_long = too_long or Problem(exceeds, where=example.where, remedy=_remedy(example))
        if wanted.done in ("truncate", "split"):
            pieces += renderer.cut(rendered, example, wanted.limits, wanted.done)
    trained = tuple(piece for piece in pieces if piece.trained)
    found = (finding for _, rendered in parts for finding in renderer.findings(rendered))
    return Outcome(
        examples=trained,
        lengths=tuple(len(example.input_ids) for example, _ in parts),
        target_lengths=tuple(len(example.labels) for example, _ in parts if isinstance(example, PairExample)),
        too_long=too_long,
        untrained=bool(pieces) and not trained,
        findings=tuple(dict.fromkeys(found)),
    )


def _remedy(example: Example) -> str:
    ways = "drop, truncate or split" if type(example) is Example else "drop or truncate"
    return f"raise it, or write data.on_overlength: {ways}"
