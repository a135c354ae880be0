"""The names of classes that a column numbers, as the library `datasets` keeps them beside the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


class NumberedClass(str):
    """The name of a class that a dataset numbers.

    Attributes:
        among: The names of all its classes: the place of one is its number.
    """

    among: Sequence[str]

    @classmethod
    def all_of(cls, names: Sequence[str]) -> list[NumberedClass]:
        """The classes of these names."""
        classes = list(map(cls, names))
        for each in classes:
            each.among = names
        return classes

    @property
    def number(self) -> int:
        """Its number in the dataset."""
        return self.among.index(self)


Named = Callable[[Any], object]
"""Makes of the number of a class its name, or of a list of numbers their names; -1 is the number of none."""


def named_classes(features: Mapping[str, Any]) -> Mapping[str, Named]:
    """What names the classes of each column that numbers some, by the features of a dataset as JSON holds them."""
    readers = {column: _named(kind) for column, kind in features.items()}
    return {column: reader for column, reader in readers.items() if reader is not None}


def _named(kind: Any) -> Named | None:
    if not isinstance(kind, Mapping):
        return None
    names = kind.get("names")
    if kind.get("_type") == "ClassLabel" and isinstance(names, list | tuple) and names:
        return partial(_name_among, dict(enumerate(NumberedClass.all_of(names))))
    if kind.get("_type") in ("List", "Sequence"):
        inner = _named(kind.get("feature"))
        return inner and partial(_each_named, inner)
    return None


def _name_among(names: Mapping[object, NumberedClass], number: object) -> object:
    """The name of a number; text is one already: whoever named the classes himself may have kept the features."""
    return names.get(number) if isinstance(number, int | float) else number


def _each_named(named: Named, numbers: object) -> object:
    return [named(number) for number in numbers] if isinstance(numbers, list) else numbers
