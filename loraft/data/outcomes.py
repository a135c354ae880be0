"""What becomes of a row on its way to tokens: examples, too long, nothing to train, or not rendered at all.

This module knows the order of rendering, tokenizing and cutting, for a few rows or a million, in this process or
another. It refuses to know files, and what is done about a row that did not come through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        length: Its tokens before any is cut, of a source where there is a target; 0 where it was not rendered.
        target_length: The tokens of its target; 0 where there is none.
        too_long: How it exceeds the limits; None where it does not.
        untrained: It was kept, or cut, and no token is left to train.
        problems: Why it could not be rendered.
    """

    examples: tuple[Example, ...] = ()
    length: int = 0
    target_length: int = 0
    too_long: Problem | None = None
    untrained: bool = False
    problems: tuple[Problem, ...] = ()


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
    found: list[Outcome | None] = []
    rendered, where = [], []
    for record, place in zip(records, places, strict=True):
        try:
            rendered.append(renderer.render(record))
            where.append(place)
            found.append(None)
        except DataError as error:
            named = (replace(p, where=place, key=wanted.columns.get(p.key or "", p.key)) for p in error.problems)
            found.append(Outcome(problems=tuple(named)))
    examples = iter(zip(renderer.examples(rendered, where), rendered, strict=True))
    return [_outcome(renderer, *next(examples), wanted) if outcome is None else outcome for outcome in found]


def _outcome(renderer: RowRenderer, example: Example, rendered: object, wanted: Wanted) -> Outcome:
    too_long = renderer.too_long(example, wanted.limits)
    pieces: Sequence[Example] = [example]
    if too_long is not None:
        cuts = wanted.done in ("truncate", "split")
        pieces = renderer.cut(rendered, example, wanted.limits, wanted.done) if cuts else []
    trained = tuple(piece for piece in pieces if piece.trained)
    return Outcome(
        examples=trained,
        length=len(example.input_ids),
        target_length=len(example.labels) if isinstance(example, PairExample) else 0,
        too_long=None if too_long is None else Problem(too_long, where=example.where, remedy=_remedy(example)),
        untrained=bool(pieces) and not trained,
    )


def _remedy(example: Example) -> str:
    ways = "drop, truncate or split" if type(example) is Example else "drop or truncate"
    return f"raise it, or write data.on_overlength: {ways}"
