"""Tensors between the host and a device: brought there without the host waiting, and copied beside what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Arrival = Any
"""What tells that a copy is done; None where it is done already."""


def has_own_memory(device: str) -> bool:
    """Whether a device has memory of its own, beside the host's: a CPU computes where the host's tensors lie."""
    return device == "cuda"


def to_device(numbers: Tensor | Sequence[Any], device: torch.device | str) -> Tensor:
    """A tensor, or numbers, on `device`: on CUDA by way of pinned memory, copied from there while the host goes on."""
    tensor = torch.as_tensor(numbers)
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_host(size: int, device: torch.device) -> Tensor:
    """`size` bytes of the host's memory: pinned, so that `device` copies from and to it by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def pinned_bytes(size: int) -> int:
    """What torch takes of the host's memory for `size` pinned bytes: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


@contextmanager
def refusing_waits(device: torch.device) -> Iterator[None]:
    """Let whatever makes the host wait for a GPU raise a RuntimeError; a CPU is the host."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings(action="ignore"):  # that not all waits are seen
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CopyStream:
    """Copies that run beside what a device computes; on a CPU, where nothing does, each is done at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, into: Tensor, source: Tensor) -> Arrival:
        """Copy as soon as all that was launched before is done, and so reads and writes neither any more."""
        if self._stream is None:
            into.copy_(source)
            return None
        _refuse_recording()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, arrival: Arrival) -> None:
        """Have what is launched from here on run after a copy; the host goes on."""
        if self._stream is not None and arrival is not None:
            _refuse_recording()
            torch.cuda.current_stream(self._stream.device).wait_event(arrival)


def _refuse_recording() -> None:
    """A recorded step would copy what was due when it was recorded, and not what is when it is launched.

    Raises:
        RuntimeError: A CUDA graph is being recorded.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("what is copied from the host while a model computes cannot be recorded")
