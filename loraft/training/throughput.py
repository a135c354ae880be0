"""How fast a run is, and how long it will take."""

from __future__ import annotations


class Throughput:
    """The rate of this process's steps, evaluations and saving left out, and what the newest step came to.

    Attributes:
        norm: The norm of the newest step's gradient, before it was clipped.
        rate: The newest step's learning rate.
        loss: Its loss, in nats a trained token.
    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._seconds = 0.0
        self._tokens = 0
        self.norm = self.rate = self.loss = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Count a step."""
        self._seconds += seconds
        self._tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        """The rate since this process began."""
        return self._tokens / self._seconds

    def seconds_left(self, step: int, steps: int) -> float:
        """How long the steps after `step` will take, of `steps` in all."""
        return self._seconds / (step - self._first_step) * (steps - step)
