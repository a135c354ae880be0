"""Signals as wishes that the loop grants at its next step: SIGINT, SIGTERM and SIGHUP to stop, SIGUSR1 to save."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Handlers(ABC):
    """Signals that are handled while this is entered."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only; elsewhere there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abstractmethod
    def _note(self, number: int, _: FrameType | None) -> None:
        """What a signal does when it comes."""


class StopSignals(_Handlers):
    """The first of the signals that stop is noted in `received`; a second one ends the process at once.

    A SIGHUP that is ignored, as nohup has it, stays ignored.
    """

    def __init__(self) -> None:
        hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        super().__init__(number for number in STOPPING if number != signal.SIGHUP or hangs_up)
        self.received: int | None = None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)


class SaveRequests(_Handlers):
    """SIGUSR1 is noted, from the moment that a run is planned: before the first step it would end the process."""

    def __init__(self) -> None:
        super().__init__((signal.SIGUSR1,))
        self._noted = False

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted = True

    def take(self) -> bool:
        """Whether a checkpoint was asked for since this was called last."""
        noted, self._noted = self._noted, False
        return noted
