"""What long work tells an observer while it goes on; the events of a run are in `training/run_events.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True)
class Note(Event):
    """Something that was decided or found, in one sentence."""

    text: str


@dataclass(frozen=True)
class Progress(Event):
    """How far a long piece of work has come."""

    what: str
    done: int
    total: int


Observer = Callable[[Event], None]


def ignored(_: object) -> None:
    """The observer of a caller who has none."""


def tell(observer: Observer, *notes: str) -> None:
    """Tell an observer some sentences."""
    for note in notes:
        observer(Note(note))
