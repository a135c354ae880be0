"""SIGINT, SIGTERM and SIGHUP as an exception, which lets a command put away what it holds before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalReceived(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does."""

    def __init__(self, watch: SignalWatch, number: int) -> None:
        super().__init__()
        self.watch = watch
        self.signal_number = number


class SignalWatch:
    """While it is armed, a signal is noted in `received` and raised; the next one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def arm(self) -> None:
        """Note and raise the next signal; one that this process was begun without, as by nohup, stays ignored."""
        self.received = None
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in STOPPING:
            if signal.getsignal(each) == self._interrupt:
                signal.signal(each, signal.SIG_DFL)
        raise SignalReceived(self, number)


@contextmanager
def interruptible() -> Iterator[SignalWatch]:
    """A watch that is armed; in threads other than the main one, which no signal reaches, it stays as it is."""
    watch = SignalWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = {number: handler for number in STOPPING if (handler := signal.getsignal(number)) is not None}
    watch.arm()
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_on_unless_ctrl_c(stop: KeyboardInterrupt) -> None:
    """Take Ctrl-C for an answer, after which the command goes on; SIGTERM and SIGHUP end it all the same.

    Raises:
        KeyboardInterrupt: `stop` itself, where it is not Ctrl-C.
    """
    if isinstance(stop, SignalReceived):
        if stop.signal_number != signal.SIGINT:
            raise stop
        stop.watch.arm()
