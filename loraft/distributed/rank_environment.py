"""What the environment says of this process's place among several: torchrun, accelerate and loraft itself set it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class RankEnvironment:
    """The place of a process among those that were started together.

    Attributes:
        world: How many there are, on all machines.
        local_rank: The number of this one on its machine.
        local_world: How many are on its machine.
        restarts: How often all of them were started again.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restarts: int = 0

    @classmethod
    def read(cls) -> RankEnvironment:
        """That of this process; the only one where nothing is said."""
        rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        local_rank, local_world = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world)
        return cls(rank, world, local_rank, local_world, _number("TORCHELASTIC_RESTART_COUNT", 0))


def _number(name: str, otherwise: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isdigit() else otherwise
