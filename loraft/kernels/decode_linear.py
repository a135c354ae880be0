"""Products of one token with large weights, as they are fast on a CPU.

In bfloat16 some CPUs lay out W anew for each product `x Wᵀ`; for one row `W x` takes it as it lies: the same bits in
two thirds of the time. On others it takes longer, so both are tried once. For several rows the form that is as fast
rounds differently, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from timeit import repeat

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

TRIED, TIMES = (4096, 1024), 12
"""The weight that the two forms are tried on, `[out, in]`, and how often."""
CLEARLY = 0.85
"""What the one may take of the time of the other: a clear gain, so that every start chooses alike."""


@contextmanager
def patch_decode_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the linear modules of a model that computes in `dtype` multiply faster, with the same results.

    Nothing changes in float32, nor modules of other classes, 4-bit ones among them. Within another one, or beside it,
    it leaves to that what is done already.
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
    on_cpu = module.weight.device.type == "cpu"
    return module.weight.dtype != dtype or (dtype == torch.bfloat16 and on_cpu and as_it_lies_is_faster())


@cache
def as_it_lies_is_faster() -> bool:
    """Whether this CPU multiplies a bfloat16 weight with one row clearly faster as it lies."""
    weight, row = torch.ones(TRIED, dtype=torch.bfloat16), torch.ones(1, TRIED[1], dtype=torch.bfloat16)
    with torch.inference_mode():
        usual = min(repeat(lambda: linear(row, weight), number=1, repeat=TIMES))
        return min(repeat(lambda: torch.mv(weight, row[0]), number=1, repeat=TIMES)) < CLEARLY * usual


def _multiply(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """`[..., in]` with a weight `[out, in]` and a bias `[out]`: `[..., out]`."""
    inputs = inputs.to(weight.dtype)
    one_row = bias is None and inputs.numel() == weight.shape[1] and weight.device.type == "cpu"
    if one_row and as_it_lies_is_faster():
        return torch.mv(weight, inputs.flatten()).view(*inputs.shape[:-1], -1)
    return linear(inputs, weight, bias)
