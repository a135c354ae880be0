"""The memory that this process holds, now and at most, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

MAPPED_FROM = 4 * 2**20
"""Tensors of so many bytes are given back as they are freed, where memory counts more than time."""


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
        return
    with suppress(OSError, AttributeError):  # glibc has it, other C libraries need none
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once(mapped_from: int = MAPPED_FROM) -> None:
    """Have large tensors of a CPU go back to the system as they are freed, for about a fifth more time.

    glibc keeps them in its heap, where tensors that are aligned fit into few of the holes that others left: without
    this gradient checkpointing takes as much memory as what it saves (GPT-2's layers at 2,048 tokens: 1.6 for 0.9 GB).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, mapped_from)  # M_MMAP_THRESHOLD


def reset_peak(device: str) -> None:
    """Let `peak_bytes` begin anew; where a system cannot, it goes on with what it was."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
