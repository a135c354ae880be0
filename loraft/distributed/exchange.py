"""What ranks give one another in a step, in bytes, over which link: rings, in which each byte passes every link once.

Of `n` ranks each gets `(n - 1) / n` of what is gathered, and of gradients that are summed in parts; what is summed
whole is summed in parts and then gathered. Where a ring goes through several machines, as much enters each of them.

Source: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations, section 3;
    Zhao et al. 2023, PyTorch FSDP (https://arxiv.org/abs/2304.11277), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraft.distributed.ranks import Ranks


@dataclass(frozen=True)
class Exchange:
    """The tensors that ranks exchange in a step, in bytes.

    Attributes:
        gathered: Weights of which each rank holds a part, as they are when they are whole; each time they are.
        scattered: Gradients of whose sum each rank gets a part; each time they are summed.
        summed: Gradients whose sum each rank gets.
        copied: There is a copy of the model on each machine, in the parts of its ranks.
    """

    gathered: int = 0
    scattered: int = 0
    summed: int = 0
    copied: bool = False

    def into_a_rank(self, ranks: Ranks) -> int:
        """The bytes that a rank gets from the others in the ring that it is in."""
        others = ranks.local_world if self.copied else ranks.world
        return round((others - 1) / others * (self.gathered + self.scattered + 2 * self.summed))

    def into_a_machine(self, ranks: Ranks) -> int:
        """The bytes that enter a machine through the network."""
        if ranks.machines == 1:
            return 0
        if not self.copied:
            return self.into_a_rank(ranks)
        # Each rank sums its part of the gradients with those of the same part on the other machines.
        return round(2 * (ranks.machines - 1) / ranks.machines * self.scattered)
