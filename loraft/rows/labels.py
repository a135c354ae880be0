"""The names of classes, as rows have them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from loraft.errors import DataError
from loraft.rows.class_names import NumberedClass
from loraft.rows.formats import ClassificationRecord, Record

NO_CLASS = "-1"
"""How the library `datasets` numbers no class."""
TRUTHS = ("true", "false")
"""One class each, however a file spells it: JSON writes true, Python's CSV True and R's TRUE."""


def class_number(label: str | int, labels: Sequence[str]) -> int:
    """The number of a class that a row names, or gives as its place where the names are no numbers themselves.

    A class that a dataset numbers is given by both, where the labels are none of the dataset's own names.

    Raises:
        DataError: There is no such class.
    """
    name = str(label)
    if (called := class_called(name, labels)) is not None:
        return called
    if isinstance(label, NumberedClass) and set(labels).isdisjoint(label.among):
        return class_number(label.number, labels)
    if name.isdecimal() and int(name) < len(labels) and not any(map(_is_number, labels)):
        return int(name)
    known = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    folded = {each.casefold(): each for each in labels}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
    hint = f"Did you mean {folded[near[0]]}? " if near else ""
    raise DataError(f"{label!r} is none of the {len(labels)} classes", key="label", remedy=f"{hint}They are {known}.")


def class_called(name: str, labels: Sequence[str]) -> int | None:
    """The number of the class of a name; None where there is none. True and true are one, unless there are two."""
    if name in labels:
        return labels.index(name)
    alike = [number for number, known in enumerate(labels) if known.lower() == name.lower() in TRUTHS]
    return alike[0] if len(alike) == 1 else None


def labels_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The classes of some records in order: as a dataset numbers them, or numbers by size and texts by the alphabet."""
    labels = [record.label for record in records if isinstance(record, ClassificationRecord)]
    numbers = {str(label): label.number for label in labels if isinstance(label, NumberedClass)}
    found = set(map(str, labels))
    for truth in TRUTHS:
        if len(alike := {name for name in found if name.lower() == truth}) > 1:
            found = found - alike | {truth}
    by_name = sorted(found)  # 1 and 01 are two classes of one size, and a set has no order
    if numbers.keys() == found:
        return tuple(sorted(by_name, key=numbers.__getitem__))
    return tuple(sorted(by_name, key=int) if all(map(_is_number, found)) else by_name)


def told_of_no_class(labels: Sequence[str]) -> str | None:
    """What to say where -1 is among the numbers of classes: files of the Hub have it for a row without any."""
    others = [label for label in labels if label != NO_CLASS]
    if len(others) == len(labels) or not all(map(str.isdecimal, others)):
        return None
    named = ", ".join(f'"{label}"' for label in others[:10]) + (", …" if len(others) > 10 else "")
    without = f"data.labels: [{named}] and data.on_bad_row: skip leave such rows out"
    return f"-1 is learned as a class of its own; where it says that a row has none, as on the Hub, {without}"


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
