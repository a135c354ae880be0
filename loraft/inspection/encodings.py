"""The ways to tell positions apart, as values: what was found, where it acts, and what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PositionEncoding", "PositionKind", "PositionTable", "encoding"]

PositionKind = Literal["learned", "sinusoidal", "rotary", "relative_bias", "alibi", "none", "unknown"]

APPLIED: Mapping[PositionKind, str] = {
    "learned": "once, added before the first layer",
    "sinusoidal": "once, added before the first layer",
    "rotary": "inside attention, to queries and keys, in {layers}",
    "relative_bias": "inside attention, added to the scores, in {layers}",
    "alibi": "inside attention, added to the scores, in {layers}",
    "none": "nowhere",
    "unknown": "not found out",
}


@dataclass(frozen=True)
class PositionTable:
    """A table that is looked up by position or by distance.

    Attributes:
        name: The parameter.
        shape: Its sizes in the model itself.
        offset: The row of position 0.
        stack: Whose positions it tells.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    stack: str


@dataclass(frozen=True)
class PositionEncoding:
    """How a model tells positions apart.

    Attributes:
        kind: The way that was found.
        applied: Where it acts.
        layers: The layers inside which it acts, by stack; empty where it acts before them.
        theta: Rotary: the base of the wavelengths as the config has it, by kind of layer where they differ.
        scaling: Rotary: how wavelengths are stretched, as the config has it; None where they are not.
        turned_share: Rotary: the part of each head that is turned.
        limit: The most positions that a table has rows for; None where nothing ends.
        tables: The tables that hold it.
        evidence: What was seen, a sentence each.
    """

    kind: PositionKind
    applied: str
    layers: Mapping[str, tuple[int, ...]]
    theta: float | Mapping[str, float] | None
    scaling: Mapping[str, Any] | None
    turned_share: float | None
    limit: int | None
    tables: tuple[PositionTable, ...]
    evidence: tuple[str, ...]


def encoding(
    kind: PositionKind, evidence: list[str], layers: Mapping[str, tuple[int, ...]], where: str, **facts: Any
) -> PositionEncoding:
    """What was found, with nothing said of what it has not.

    Args:
        kind: The way.
        evidence: What was seen.
        layers: The layers inside which it acts, by stack.
        where: Those layers in words.
        facts: What else there is to say of it.
    """
    nothing = {"theta": None, "scaling": None, "turned_share": None, "limit": None, "tables": ()}
    applied = APPLIED[kind].format(layers=where)
    return PositionEncoding(kind, applied, layers, evidence=tuple(evidence), **(nothing | facts))
