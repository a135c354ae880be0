"""What becomes of a row on its way to tokens: examples, too long, nothing to train, or not rendered at all.

This module knows the order of rendering, tokenizing and cutting, for a few rows or a million, in this process or
another. It refuses to know files, and what is done about a row that did not come through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraft.config.schema import DataSection, DataSource
from loraft.data.examples import Example, PairExample
from loraft.data.formats import Record
from loraft.data.long_texts import ManyTokensError
from loraft.data.rendering import RowRenderer
from loraft.errors import DataError, Problem

__all__ = ["Outcome", "Wanted", "outcomes", "wanted_of"]

DROP = "write data.on_overlength: drop"


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
        in_part: It is longer than these lengths say: a very long row is not counted to its end.
        too_long: How it exceeds the limits; None where it does not.
        untrained: It was kept, or cut, and no token is left to train.
        problems: Why it could not be rendered.
    """

    examples: tuple[Example, ...] = ()
    length: int = 0
    target_length: int = 0
    in_part: bool = False
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
            rendered.append(_rendered(renderer, record, wanted))
            where.append(place)
            found.append(None)
        except DataError as error:
            found.append(_unusable(error, place, wanted))
        except ManyTokensError as error:
            found.append(_uncounted(error.fewest, place))
    examples = iter(zip(_examples(renderer, rendered, where, wanted), rendered, strict=True))
    return [_outcome(renderer, *next(examples), wanted) if outcome is None else outcome for outcome in found]


def _rendered(renderer: RowRenderer, record: Record, wanted: Wanted) -> tuple[Any, bool]:
    """A record as text, and whether that is a beginning of it: of a row that is cut or dropped no more is read.

    Raises:
        DataError: It cannot be rendered, or read.
        ManyTokensError: It is too long by any count, and is dropped or refused.
    """
    whole = renderer.render(record)
    if wanted.done == "split":
        return whole, False
    try:
        beginning = renderer.beginning(whole, wanted.limits)
    except ManyTokensError as error:
        if wanted.done == "truncate":
            raise error.refusal from None
        raise
    return beginning, beginning is not whole


def _examples(
    renderer: RowRenderer, rendered: Sequence[tuple[Any, bool]], where: Sequence[str], wanted: Wanted
) -> list[Example | Outcome]:
    """Each record as tokens, or why it cannot be read: of many the one at fault is looked for."""
    texts = [text for text, _ in rendered]
    try:
        return list(renderer.examples(texts, where))
    except DataError as error:
        if len(texts) == 1:
            return [_unusable(error, where[0], wanted)]
        return [_examples(renderer, [each], [place], wanted)[0] for each, place in zip(rendered, where, strict=True)]


def _unusable(error: DataError, place: str, wanted: Wanted) -> Outcome:
    named = (replace(each, where=place, key=wanted.columns.get(each.key or "", each.key)) for each in error.problems)
    return Outcome(problems=tuple(named))


def _uncounted(fewest: int, place: str) -> Outcome:
    """A row of one unbroken text that is too long by any count."""
    problem = Problem(f"has at least {fewest:,} tokens, more than the config takes", where=place, remedy=DROP)
    return Outcome(length=fewest, in_part=True, too_long=problem)


def _outcome(renderer: RowRenderer, example: Example | Outcome, read: tuple[Any, bool], wanted: Wanted) -> Outcome:
    if isinstance(example, Outcome):
        return example
    rendered, in_part = read
    too_long = renderer.too_long(example, wanted.limits, least="more than " if in_part else "")
    pieces: Sequence[Example] = [example]
    if too_long is not None:
        cuts = wanted.done in ("truncate", "split")
        pieces = renderer.cut(rendered, example, wanted.limits, wanted.done) if cuts else []
    trained = tuple(piece for piece in pieces if piece.trained)
    return Outcome(
        examples=trained,
        length=len(example.input_ids),
        target_length=len(example.labels) if isinstance(example, PairExample) else 0,
        in_part=in_part,
        too_long=None if too_long is None else Problem(too_long, where=example.where, remedy=_remedy(example)),
        untrained=bool(pieces) and not trained,
    )


def _remedy(example: Example) -> str:
    ways = "drop, truncate or split" if type(example) is Example else "drop or truncate"
    return f"raise it, or write data.on_overlength: {ways}"
