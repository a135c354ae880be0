"""Which rank reads which rows of a step."""

from __future__ import annotations

from collections.abc import Sequence

from loraft.tokenization.examples import Example


def deal_rows(rows: Sequence[Example], batches: int, size: int, world: int) -> list[list[Example]]:
    """The rows of so many batches, as batches of at most `size` whose tokens differ little between the `world` ranks.

    Batch i is of rank i modulo `world`, and each rank has as many. The longest row goes first, each to the rank that
    has the fewest tokens so far among those with room, and there into its batch that has the fewest.
    """
    batches = -(-batches // world) * world
    dealt: list[list[Example]] = [[] for _ in range(batches)]
    tokens = [0] * batches
    of_rank = [0] * world
    for row in sorted(rows, key=lambda row: -row.tokens):
        open_ = [at for at in range(batches) if len(dealt[at]) < size]
        at = min(open_, key=lambda at: (of_rank[at % world], tokens[at], at))
        dealt[at].append(row)
        tokens[at] += row.tokens
        of_rank[at % world] += row.tokens
    return [batch for batch in dealt if batch]
