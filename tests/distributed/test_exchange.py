"""What ranks give one another, by hand."""

from __future__ import annotations

import pytest

from loraft.distributed.exchange import Exchange
from loraft.distributed.ranks import Ranks

MODEL = Exchange(gathered=1600, scattered=80)


@pytest.mark.parametrize(
    ("exchange", "ranks", "rank", "machine"),
    [
        (Exchange(summed=80), Ranks(0, 2, 0, 2), 80, 0),  # half of it twice: summed in parts, then gathered
        (Exchange(summed=80), Ranks(0, 8, 0, 8), 140, 0),
        (Exchange(summed=80), Ranks(0, 8, 0, 4), 140, 140),
        (MODEL, Ranks(0, 2, 0, 2), 840, 0),
        (MODEL, Ranks(0, 8, 0, 4), 1470, 1470),
        # Copies: a rank gathers from three of its machine; the four parts of the gradients are summed over two.
        (Exchange(1600, 80, copied=True), Ranks(0, 8, 0, 4), 1260, 80),
    ],
)
def test_bytes_by_link(exchange: Exchange, ranks: Ranks, rank: int, machine: int) -> None:
    assert (exchange.into_a_rank(ranks), exchange.into_a_machine(ranks)) == (rank, machine)
