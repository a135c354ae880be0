"""Dropout as a CPU trains with it: numbers of 16 bits decide, four of them from each that is drawn.

torch draws one for each number that may be dropped, which takes longer than the products around it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16
"""Of so many numbers that are drawn alike, those below a threshold drop theirs: the share is kept to 1 / 131,072."""


def drawn(like: Tensor, share: float) -> tuple[Tensor, float]:
    """What is kept where `share` of the numbers are dropped: 1 or 0 in the shape and dtype of `like`; and the factor.

    The factor is that on what is kept, 1 / (1 - the share). The generator is seeded by torch's of the CPU, with which
    what is drawn is repeated.
    """
    seed = int(torch.randint(2**62, ()))
    count, threshold = like.numel(), min(round(share * LEVELS), LEVELS - 1)
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True)
    numbers = torch.from_numpy(words.view(np.int16)[:count]).view(like.shape)
    kept = torch.ge(numbers, threshold - LEVELS // 2, out=torch.empty(like.shape, dtype=like.dtype))
    return kept, LEVELS / (LEVELS - threshold)


def patch_dropout(model: nn.Module) -> None:
    """Let every dropout module of `model` draw so on a CPU."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = _Dropout


class _Dropout(nn.Dropout):
    """In training, on a CPU, by numbers of 16 bits."""

    def forward(self, states: Tensor) -> Tensor:
        """`[...]` to `[...]`."""
        if not self.training or states.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(states)
        kept, factor = drawn(states, self.p)
        return states * kept.mul_(factor)
