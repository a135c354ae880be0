"""Which rows are held out for evaluation: a share drawn by the seed, rows of one input together, each class present."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np

from loraft.errors import DataError
from loraft.tasks.task import Task
from loraft.tokenization.examples import Example

EVAL_STREAM = 0x5EED
"""Keeps the draw of the held-out rows apart from the order of epochs, which has the same seed."""


def held_out_rows(examples: Sequence[Example], task: Task, share: float, seed: int) -> frozenset[str]:
    """The places of the rows to hold out.

    Rows of the same input are on one side, pieces of one row too. Of each class the same share is held out, at least
    one row where `share` is enough for that, and one at least is left to train on.

    Args:
        examples: All rows.
        task: What is learned from them.
        share: The share of rows to hold out.
        seed: Draws them.

    Raises:
        DataError: There are fewer than two rows.
    """
    inputs: dict[str, hashlib.blake2b] = {}
    classes: dict[str, int] = {}
    for example in examples:
        tokens = array("q", [*example.input_ids, -1]).tobytes()
        inputs.setdefault(example.where, hashlib.blake2b(digest_size=16)).update(tokens)
        if (number := task.class_number(example)) is not None:
            classes[example.where] = number
    rows = sorted(inputs)
    random = np.random.Generator(np.random.PCG64([seed, EVAL_STREAM]))
    groups: dict[bytes, list[str]] = {}
    for index in random.permutation(len(rows)):
        groups.setdefault(inputs[rows[index]].digest(), []).append(rows[index])
    if len(rows) < 2:
        raise DataError(
            "one row cannot be shared between training and evaluation", key="data.eval", remedy="write data.eval: null"
        )
    # Where all rows are the same there is nothing to keep apart.
    together = list(groups.values()) if len(groups) > 1 else [[row] for row in rows]
    most = min(max(1, round(share * len(rows))), len(rows) - 1)
    taken: list[str] = []
    for group in _in_turn(together, classes):
        if len(taken) + len(group) <= most:
            taken += group
    if not taken:  # where none fits into the share, as few as can be
        _, taken = min((len(group), group) for group in together)
    return frozenset(taken)


def _in_turn(groups: Sequence[list[str]], classes: dict[str, int]) -> list[list[str]]:
    """Groups in the order in which they are held out.

    First one group of each class, then always one of the class of which the smallest share is held out so far.
    """
    of_class: dict[int | None, list[list[str]]] = {}
    for group in groups:
        of_class.setdefault(classes.get(group[0]), []).append(group)
    if len(of_class) == 1:
        return list(groups[:-1])
    largest_first = sorted(of_class.values(), key=len, reverse=True)
    turns = [
        (0.0 if place == 0 else (place + 0.5) / len(members), number, member)
        for number, members in enumerate(largest_first)
        for place, member in enumerate(members[:-1])  # the last one is left to train on
    ]
    return [member for _, _, member in sorted(turns, key=lambda turn: turn[:2])]


def digest_of_draw(examples: Sequence[Example]) -> str:
    """What tells one draw of held-out rows from another: a sha256 over their places."""
    return hashlib.sha256("\n".join(sorted({example.where for example in examples})).encode()).hexdigest()
