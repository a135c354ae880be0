"""A factor of an update that begins at the weights of the base: what is trained, and what it began with, taken off.

With A₀ and B₀ as the start, x Wᵀ + scale · x (B A - B₀ A₀)ᵀ is the base at the first step, and its W is never changed:
[A; A₀] and [B, -B₀] are a plain update of twice the rank. That is what is saved, and what any tool then computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class StartedFactor(nn.Linear):
    """A linear module whose weight is the trained one, followed by a start that stays as it is.

    In a state both are one weight, so that saving and loading have the plain update.
    """

    start: Tensor
    along: int

    @property
    def whole(self) -> Tensor:
        """A: `[2 r, in]`, along 0; B: `[out, 2 r]`, along 1."""
        return torch.cat([self.weight, self.start], self.along)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Multiply with all of it."""
        return linear(input, self.whole)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        whole = self.whole
        destination[f"{prefix}weight"] = whole if keep_vars else whole.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if (whole := state_dict.get(f"{prefix}weight")) is not None:
            trained, start = whole.split(self.weight.shape[self.along], self.along)
            with torch.no_grad():
                self.weight.copy_(trained)
                self.start.copy_(start)


def begin_with(module: nn.Linear, values: Tensor, start: Tensor, along: int) -> None:
    """Let a factor begin with `values`, and have `start` behind them for good."""
    module.weight.data.copy_(values)
    module.__class__ = StartedFactor
    module.register_buffer("start", start.to(module.weight), persistent=False)
    module.along = along  # type: ignore[assignment]


def factor_of(module: nn.Module) -> Tensor:
    """The matrix that a factor's module multiplies with."""
    return module.whole if isinstance(module, StartedFactor) else module.weight  # type: ignore[return-value]
