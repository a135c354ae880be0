"""Products with weights that bitsandbytes stores in int8: each dequantizes its weight, in training and out of it.

bitsandbytes' own products (LLM.int8) quantize what is multiplied as well, apart from the columns that any row of the
batch has an outlier in, so that an answer depends on the rows beside it; and on a CPU they do so out of training alone,
so that a model does not compute what was trained. Here a row's product is a function of that row and the weight.

Source: Dettmers et al. 2022, LLM.int8(), section 2.1: vector-wise constants (https://arxiv.org/abs/2208.07339).
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor
from torch.nn.functional import linear

from loraft.kernels.linear_weights import dequantized, product_dtype


class Int8Linear(Linear8bitLt):
    """A frozen linear module in int8, whose products are those of its dequantized weight.

    Attributes:
        compute_dtype: The dtype of the products; None is that of what is multiplied.
    """

    compute_dtype: torch.dtype | None = None

    @property
    def scales(self) -> Tensor:
        """`[out]`: the largest size in each row of the weight, float32."""
        weight: Any = self.weight
        kept: Any = weight.SCB if weight.SCB is not None else self.state.SCB
        assert isinstance(kept, Tensor)
        return kept

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        given = product_dtype(x)
        dtype = self.compute_dtype or given
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _Product.apply(x.to(dtype), self.weight.data, self.scales, bias)  # type: ignore[no-untyped-call]
        return product.to(given)


class _Product(torch.autograd.Function):
    """x Wᵀ + bias with W in int8 and frozen: between forward and backward only the codes are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        with torch.autocast(x.device.type, enabled=False):  # the dtype is decided
            return linear(x, dequantized(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        return grads[0] @ dequantized(codes, scales, grads[0].dtype), None, None, None
