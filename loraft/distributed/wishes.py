"""What signals ask a run for, known to all of its ranks at the same step."""

from __future__ import annotations

from collections.abc import Sequence

from loraft.distributed.ranks import Ranks


class Wishes:
    """What signals ask for; what they ask one of several ranks for, all grant at the same place.

    Attributes:
        stop: The signal that asks for the end; 0 is none.
        save: Whether one asks for a checkpoint.
    """

    def __init__(self, ranks: Ranks, stops: Sequence[int], saves: list[int]) -> None:
        self._ranks, self._stops, self._saves = ranks, stops, saves
        self.stop, self.save = 0, False

    def share(self) -> Wishes:
        """Look at the signals that have come to any rank."""
        stop, save = self._ranks.greatest(next(iter(self._stops), 0), len(self._saves))
        self.stop, self.save = int(stop), bool(save)
        return self

    def granted(self) -> None:
        """A checkpoint was saved."""
        self._saves.clear()
        self.save = False
