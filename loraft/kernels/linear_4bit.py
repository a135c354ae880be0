"""Products with weights in 4 bits beside a bias that may be trained."""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor


class Biased4bitLinear(Linear4bit):
    """A linear module in 4 bits whose bias keeps its dtype.

    bitsandbytes casts it for good to that of the products: one that is trained would be in 16 bits from then on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        held: dict[str, Any] = self._parameters
        bias = held["bias"]
        held["bias"] = bias.to(self.compute_dtype or x.dtype)  # gradients go through it
        try:
            product: Tensor = super().forward(x)
        finally:
            held["bias"] = bias
        return product
