"""What oneDNN keeps on a CPU in 16 bits: a kernel for each shape of a product that it has met."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from loraft.planning.base_weights import StackSizes

CAPACITY, SET_BY = 1024, "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""How many it keeps at the most, if the environment does not say otherwise."""
KERNEL_BYTES = {"amx_bf16": 1_000_000, "avx512_bf16": 600_000}
"""What one takes by the instructions that it is made of, as was measured; of other ones it keeps none."""


def kept_kernels(stacks: Iterable[StackSizes]) -> int:
    """The bytes of those that a run meets in its first epoch, on the CPU of this process."""
    known = torch.cpu.get_capabilities()
    a_kernel = next((size for name, size in KERNEL_BYTES.items() if known.get(name)), 0)
    kept = os.environ.get(SET_BY, "")
    return a_kernel * min(int(kept) if kept.isdecimal() else CAPACITY, sum(map(_shapes, stacks)))


def _shapes(stack: StackSizes) -> int:
    """The shapes of products that a stack meets.

    Of a length a base weight is met twice, forward and backward; of an update A and B three times each, with their
    gradients; and attention has two products and the three of its gradients.
    """
    update = sum(len(set(widths)) for widths in zip(*stack.update.modules, strict=True))
    return stack.lengths * (2 * stack.layer.products + 3 * update) + stack.attended_lengths * 5
