"""The batches of each step as the device takes them: on CUDA laid and copied while the step before runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from loraft.dataset.sampler import StepBatches
from loraft.tasks.batches import Batch
from loraft.tokenization.examples import Example


@dataclass(frozen=True)
class PreparedStep:
    """What an optimizer step reads.

    Attributes:
        window: What all ranks read.
        rows: What this one reads of it, batch by batch.
        batches: The same on the device.
        counted: How many of them count, the first ones; the others keep ranks in step.
        weight: What the summed loss of all ranks is divided by.
        tokens: How many all ranks read, padding left out.
        targets: How many are predicted, or rows decided.
        seconds: How long the host was at nothing but laying them.
    """

    window: StepBatches
    rows: list[list[Example]]
    batches: tuple[Batch, ...]
    counted: int
    weight: float
    tokens: int
    targets: int
    seconds: float = 0.0


class PreparedSteps(Iterator[PreparedStep]):
    """The steps of some windows, of which one may be made ready before it is asked for.

    What goes wrong with it then is told when it is asked for, so that the step before it is taken as it would be; but
    of several ranks the one that meets something by itself tells it at once, for the others wait for it already.
    """

    def __init__(
        self, windows: Iterator[StepBatches], lay: Callable[[StepBatches], PreparedStep], *, alone: bool = True
    ) -> None:
        self._windows, self._lay, self._alone = windows, lay, alone
        self._ready: PreparedStep | Exception | None = None

    def make_ready(self) -> None:
        """Make the next step ready, while a step runs."""
        try:
            self._ready = replace(self._lay(next(self._windows)), seconds=0.0)
        except Exception as error:  # StopIteration among them: whatever it is, the next step meets it
            met_by_all = isinstance(error, StopIteration) or getattr(error, "told_by_main", False)
            if not (self._alone or met_by_all):
                raise
            self._ready = error

    def __next__(self) -> PreparedStep:
        ready, self._ready = self._ready, None
        if isinstance(ready, Exception):
            raise ready
        return self._lay(next(self._windows)) if ready is None else ready
