"""Positions that are added once, before the first layer: from a table, learned or of sines, or by a formula.

The table that was looked up by position is emptied; if the difference between positions goes, it was that. Rows whose
distance depends only on how far apart they stand are sines and cosines, which are not learned.

Source: Vaswani et al. 2017, section 3.5 (https://arxiv.org/abs/1706.03762).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from loraft.inspection.encodings import PositionEncoding, PositionTable, encoding
from loraft.inspection.watching import Lookup, Run, differs

__all__ = ["added_before", "without_tables"]


@contextmanager
def without_tables(run: Run) -> Iterator[bool]:
    """Empty the tables that `run` looked up by position before its layers, for a while; whether there are any."""
    tables = [look.weight for look in _looks(run)]
    kept = [table.detach().clone() for table in tables]
    with torch.no_grad():
        for table in tables:
            table.zero_()
    try:
        yield bool(tables)
    finally:
        with torch.no_grad():
            for table, values in zip(tables, kept, strict=True):
                table.copy_(values)


def added_before(
    run: Run, emptied: Run | None, stacks: Sequence[str], sizes: Mapping[int, tuple[str, tuple[int, ...]]]
) -> PositionEncoding:
    """What is added before the first layer of `stacks`.

    Args:
        run: What the copy did.
        emptied: What it did without the tables that it looked up by position.
        stacks: Where what comes into the first layer differs between positions.
        sizes: The name of each weight of the copy, by its identity, and its sizes in the model itself.
    """
    where = " and of ".join(f"the {stack}" for stack in stacks)
    evidence = [
        f"one token repeated: what comes into the first layer of {where} differs between positions, "
        "and within the layers nothing else does"
    ]
    if emptied is None or any(differs(emptied.entered[stack]) for stack in stacks):
        evidence.append("no table of the model holds that difference: it is computed, and not learned")
        return encoding("sinusoidal", evidence, {}, "")
    looks = _looks(run)
    tables = tuple(
        PositionTable(*sizes[id(look.weight)], offset=int(look.rows.min()), stack=stack)
        for look, stack in zip(looks, stacks, strict=False)
        if id(look.weight) in sizes
    )
    names = " and ".join(dict.fromkeys(table.name for table in tables))
    evidence.append(f"with {names} emptied the difference is gone")
    limit = min(table.shape[0] - table.offset for table in tables)
    if all(_is_sines(look.weight, look.rows) for look in looks):
        evidence.append(
            "two rows are as far apart as their positions are, whichever they are: sines and cosines, which are fixed"
        )
        return encoding("sinusoidal", evidence, {}, "", limit=limit, tables=tables)
    evidence.append(f"its rows follow no rule: they are learned, and there is none after position {limit - 1:,}")
    return encoding("learned", evidence, {}, "", limit=limit, tables=tables)


def _looks(run: Run) -> list[Lookup]:
    return [look for look in run.lookups if look.place is None and look.by_position and not look.by_distance]


def _is_sines(table: Tensor, rows: Tensor) -> bool:
    """Whether the distance of two rows depends only on how many positions lie between them."""
    used = table.detach()[torch.unique(rows)].double()
    distances = torch.cdist(used, used)
    steps = [distances.diagonal(step) for step in range(1, len(used))]
    return all(bool((step - step[0]).abs().max() <= 1e-3 * distances.max()) for step in steps)
