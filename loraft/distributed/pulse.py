"""Ranks that wait for one another as long as it takes, and notice when one is gone or cut off.

Reading all rows may take hours, in which a rank that waits hears nothing of the one that reads. So a thread of each
rank beats meanwhile: it tells the others where its rank is, and a beat that a rank does not take part in ends in time.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.distributed as dist

BEAT = 0.1
"""Seconds between two beats: what a wait takes longer at most."""
LEFT = "connection closed: a rank has left the others"


class Pulse:
    """The beat of a rank, and the places where ranks meet, as many on each of them.

    Args:
        group: The group in which ranks beat and do nothing else; its timeout is how long a beat waits for a rank.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._state = threading.Condition()
        self._arrived, self._met, self._leaves = 0, 0, False
        self._lost: Exception | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True, name="pulse")
        self._thread.start()

    def meet(self) -> None:
        """Wait until all ranks have come here, as long as each of them beats.

        Raises:
            RuntimeError: A rank has left, does not beat or cannot be reached: torch's own error, for the roll call.
        """
        with self._state:
            self._arrived = wanted = self._arrived + 1
            self._state.notify_all()
            self._state.wait_for(lambda: self._met >= wanted or self._lost is not None)
            if self._met < wanted and self._lost is not None:
                raise self._lost

    def stop(self) -> None:
        """Leave the others, which are told by the last beat."""
        with self._state:
            self._leaves = True
            self._state.notify_all()
        self._thread.join(10 * BEAT)  # of a rank that is cut off the last beat ends when it is too late

    def _beat(self) -> None:
        try:
            while self._lost is None:
                self._tell()
        except Exception as error:
            with self._state:
                self._lost = error
                self._state.notify_all()

    def _tell(self) -> None:
        """Tell the others where this rank is, hear where all are, and pause."""
        with self._state:
            told = self._arrived
            least = torch.tensor([-told, int(self._leaves)])
        dist.all_reduce(least, dist.ReduceOp.MAX, group=self._group)
        met, left = -int(least[0]), bool(least[1])
        with self._state:
            self._met = met
            self._lost = RuntimeError(LEFT) if left else None
            self._state.notify_all()
            self._state.wait_for(lambda: self._arrived > told or self._leaves or self._lost is not None, BEAT)
