"""What the host did with the device: for what it waited, what it copied, what it launched, and what was held."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch

OURS, BETWEEN = "/loraft/", ("/torch/", "/tests/cuda_rehearsal/")


def where() -> str:
    """The line of loraft that is being run, and what of another library it called."""
    inner: str | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name, line = frame.f_code.co_filename, frame.f_lineno
        if OURS in name and not any(part in name for part in BETWEEN):
            ours = f"loraft/{name.rpartition(OURS)[2]}:{line}"
            return ours if inner is None else f"{ours} by {inner}"
        if inner is None and not any(part in name for part in BETWEEN):
            inner = f"{name.rpartition('site-packages/')[2]}:{line}"
        frame = frame.f_back
    return inner or "autograd"


@dataclass
class Ledger:
    """Counts since it was opened.

    Attributes:
        waits: How often the host waited until the device was done, by what for and where.
        copies: How often it copied something to the device and waited for that, likewise.
        launches: How many kernels were launched, by operation.
        squares: Tensors whose last two sizes are one and the same, by operation and size: dense masks and scores.
        live: The bytes that are held now.
        peak: The most that were held at once.
        refuses: Whether a wait is an error, as `torch.cuda.set_sync_debug_mode` has it.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    squares: Counter[tuple[str, int]] = field(default_factory=Counter)
    live: int = 0
    peak: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)
    _captures: bool = False
    refuses: bool = False

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While a graph is recorded the host waits for nothing: CUDA refuses it."""
        self._captures = True
        try:
            yield
        finally:
            self._captures = False

    def _refuse(self, reason: str) -> None:
        if self.refuses:
            raise RuntimeError(f"called a synchronizing CUDA operation: {reason} at {where()}")
        if self._captures:
            raise RuntimeError(f"operation not permitted when stream is capturing: {reason} at {where()}")

    def wait(self, reason: str) -> None:
        """The host waits for the device."""
        self._refuse(reason)
        self.waits[f"{reason} at {where()}"] += 1

    def copy(self, reason: str) -> None:
        """The host copies to the device, and waits until it is done."""
        self._refuse(reason)
        self.copies[f"{reason} at {where()}"] += 1

    def hold(self, tensor: torch.Tensor) -> None:
        """A tensor came to be on the device; its memory is counted until nothing has it any more."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._sizes[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    @contextmanager
    def since(self) -> Iterator[Ledger]:
        """What is counted from here on, complete when this is left; memory is counted by the whole alone."""
        found = Ledger()
        before = self.waits.copy(), self.copies.copy(), self.launches.copy(), self.squares.copy()
        self.peak = self.live
        yield found
        found.waits, found.copies = self.waits - before[0], self.copies - before[1]
        found.launches, found.squares = self.launches - before[2], self.squares - before[3]
        found.live, found.peak = self.live, self.peak
