"""The memory that this process holds, now and at most, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

MAPPED_FROM = 4 * 2**20
"""Tensors of so many bytes are given back as they are freed, where memory counts more than time."""
TRIMMED_FROM = 2**18
"""A layer that reads so many bytes takes far longer than giving back what was freed."""


def peak_bytes(device: str) -> int:
    """The most memory held so far: torch's on CUDA, this process's on the CPU.

    On Linux `getrusage` counts what the process held before it became loraft too: that of the program that started it.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        told = Path("/proc/self/status").read_text(encoding="ascii")
        return int(told.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # no Linux: what getrusage says, which there counts nothing else
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def held_bytes(device: str) -> int:
    """The memory held now: torch's on CUDA, this process's on the CPU."""
    return torch.cuda.memory_allocated() if device == "cuda" else int(psutil.Process().memory_info().rss)


def release_freed(device: str) -> None:
    """Give back to the system what was freed and is still held for later: after quantizing, as much as the weights."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        _trim()


def release_before(layers: Iterable[nn.Module]) -> None:
    """Have what was freed given back to the system before each layer computes, where memory counts more than time.

    glibc keeps it in its heap, and tensors are aligned, so that none fits into the hole that one of its size left: with
    what each layer keeps among them the holes come to more than what gradient checkpointing leaves. A layer that is
    recomputed goes backward then, and what the one above it freed meanwhile is given back too.
    """
    for layer in layers:
        layer.register_forward_pre_hook(_trim_before)


def _trim_before(_layer: nn.Module, inputs: tuple[object, ...]) -> None:
    states = inputs[0] if inputs else None
    if torch.is_grad_enabled() and isinstance(states, Tensor) and states.nbytes >= TRIMMED_FROM:
        _trim()


def _trim() -> None:
    with suppress(OSError, AttributeError):  # glibc has it, other C libraries need none
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once(mapped_from: int = MAPPED_FROM) -> None:
    """Have tensors of so many bytes go back to the system as they are freed, which takes time for each."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, mapped_from)  # M_MMAP_THRESHOLD


def reset_peak(device: str) -> None:
    """Let `peak_bytes` begin anew; where a system cannot, it goes on with what it was."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
