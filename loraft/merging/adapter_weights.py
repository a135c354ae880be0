"""`PLACE=WEIGHT`, the word of merging for an adapter and how much of it.

It loads without torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from loraft.adapters.metadata import ResolvedTarget
from loraft.adapters.resolve_target import resolve_target
from loraft.errors import AdapterError
from loraft.merging.merge_report import REPORT


def weighted(given: str) -> tuple[str, float]:
    """The place and the weight in a value of `adapters`; a weight that is left out is 1.

    Raises:
        AdapterError: The weight is no finite number.
    """
    place, equals, number = given.rpartition("=")
    if not equals or os.path.exists(given):  # asks without raising
        return given, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not place or not math.isfinite(weight):
        message = f"{number!r} is no weight"
        raise AdapterError(message, parameter="adapters", remedy="Write DIR=WEIGHT, such as runs/a=0.7, or DIR alone.")
    return place, weight


def resolve_weighted(
    target: str | None, given: Sequence[str], *, base_model: str | None = None
) -> tuple[ResolvedTarget, tuple[float, ...]]:
    """Find what is to be merged: the adapters, their weights and the base.

    Args:
        target: An adapter, or the base beside `given`.
        given: Adapters to put on it, `PLACE=WEIGHT` or `PLACE`.
        base_model: The base to use whatever the adapters name.

    Raises:
        AdapterError: Nothing is found there, or there is no adapter among it.
    """
    places = [weighted(each) for each in given]
    # Names of our own: two runs may have folders of one name, and nobody asks for an adapter by its name here.
    named = [f"adapter-{number}={place}" for number, (place, _) in enumerate(places, start=1)]
    found = resolve_target(target, named, base_model=base_model)
    if not found.adapters:
        message = f"{target} has no adapter that could be merged"
        raise AdapterError(
            message, parameter="target", remedy="Name an adapter, a run or a checkpoint, or add `adapters`."
        )
    return found, tuple(weight for _, weight in places) or (1.0,)


def means_a_base(word: str, adapters: Sequence[str]) -> bool:
    """Whether a single word beside `adapters` names a base, and not the folder to write.

    A model that is there is one, and so is the name that the adapters have for theirs.
    """
    if word.startswith("builtin:") or word.endswith(".gguf"):
        return True
    path = Path(word).expanduser()
    if os.path.exists(path):
        return (path / "config.json").is_file() and not (path / REPORT).is_file()
    named = {resolve_target(weighted(each)[0]).adapters for each in adapters}
    return any(adapter.base == word for adapters_of_one in named for adapter in adapters_of_one)
