"""The weights of linear modules as their products see them, whatever they are stored in."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LARGEST = 127
"""What the weight of the greatest size in a row is stored as."""


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast gives to a product with `tensor`, or the tensor's own where autocast is off."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def is_quantized(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a linear module of a loaded model holds its weight in 4 or 8 bits."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return isinstance(module, Linear4bit | Linear8bitLt)


def unpacked(module: nn.Module) -> Tensor:
    """The weight `[out, in]` of a linear module as its products see it; that of a quantized one is dequantized."""
    from bitsandbytes.functional import dequantize_4bit

    linear: Any = module
    if not is_quantized(module):
        weight: Tensor = linear.weight.detach()
        return weight.T if isinstance(linear, Conv1D) else weight
    if hasattr(linear, "scales"):  # in 8 bits
        return dequantized(linear.weight.data, linear.scales, linear.compute_dtype or torch.float32)
    whole: Tensor = dequantize_4bit(linear.weight.data, constants_of(linear))
    return whole if linear.compute_dtype is None else whole.to(linear.compute_dtype)


def dequantized(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of int8 codes and the largest size of each row, `[out]`: code · scale / 127."""
    return codes.to(dtype, copy=True).mul_(scales[:, None] * (1 / LARGEST))


def constants_of(base: Any) -> Any:
    """What a weight in 4 bits is read by: the module has it too, for a weight that is gathered is plain bytes."""
    state = getattr(base.weight, "quant_state", None)
    return base.quant_state if state is None else state


def keep_constants(model: nn.Module) -> None:
    """Let modules with weights in 4 bits have the constants that their weights have."""
    for module in model.modules():
        state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            module.quant_state = state
