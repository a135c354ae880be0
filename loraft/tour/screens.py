"""What a part of the tour is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]
"""What a command prints with `--json`."""

DECODER = "builtin:smollm2-135m-instruct"
ENCODER = "builtin:all-minilm-l6-v2"


def spelt(text: str) -> str:
    """A token's text in quotes, with its space and its line end to be seen."""
    return f"“{text.replace(' ', '␣').replace(chr(10), '⏎')}”"


def percent(share: float, decimals: int = 1) -> str:
    """A share from 0 to 1, as the commands write it."""
    return f"{share:.{decimals}%}".replace("%", " %")


def bare_name(model: Document) -> str:
    """What a model that was looked into is called, whatever it comes from."""
    return str(model["model"]).removeprefix("builtin:")


@dataclass(frozen=True)
class Fact:
    """What is commonly said, and what is so.

    Attributes:
        said: Empty where tutorials leave it out.
        measured: What the commands of the screen found of it, from their documents in order; it may be nothing. What
            says values alone is the `format` of a text, in which `{0[key]}` is one of the first document.
    """

    said: str
    so: str
    measured: Callable[..., str]


@dataclass(frozen=True)
class Shown:
    """A command that is run.

    Attributes:
        words: As one types them after `loraft`.
        only: The sections of its output that are shown; all where none is named.
        refused: It is expected to be refused, with exit code 2.
    """

    words: str
    only: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Screen:
    """An idea in a sentence or two, the commands that show it, and what to take from them."""

    idea: str
    commands: tuple[Shown, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Part:
    """A part of the tour."""

    title: str
    screens: tuple[Screen, ...]
