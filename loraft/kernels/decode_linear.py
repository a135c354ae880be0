"""Products of one token with large weights, as they are fast on a CPU.

In bfloat16 on a CPU, `x Wᵀ` lays out W anew for each product; for one row `W x` takes it as it lies: the same bits in
two thirds of the time. For several rows the form that is as fast rounds differently, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@contextmanager
def patch_decode_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the linear modules of a model that computes in `dtype` multiply faster, with the same results.

    Nothing changes in float32. Modules of other classes, 4-bit ones among them, keep their own products. Within
    another one, or beside it, it leaves to that what is done already.
    """
    linears = (module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module))
    modules = [module for module in linears if _gains(module, dtype)]
    for module in modules:
        bias = module.bias.to(dtype) if module.bias is not None else None
        # The instance's own, in front of its class's: hooks and peft's layers go on as before.
        module.forward = partial(_multiply, module.weight.to(dtype), bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _gains(module: nn.Linear, dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return False
    return module.weight.dtype != dtype or (dtype == torch.bfloat16 and module.weight.device.type == "cpu")


def _multiply(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """`[..., in]` with a weight `[out, in]` and a bias `[out]`: `[..., out]`."""
    inputs = inputs.to(weight.dtype)
    if bias is None and inputs.numel() == weight.shape[1] and weight.device.type == "cpu":
        return torch.mv(weight, inputs.flatten()).view(*inputs.shape[:-1], -1)
    return linear(inputs, weight, bias)
