"""bitsandbytes' 4-bit weights on a CPU, dequantized to what was quantized whatever the length of a row.

Blocks of 64 numbers go on over the ends of rows, as they are quantized and as CUDA reads them. bitsandbytes' kernel for
the CPU (0.50) begins a block anew with each row, and gives other numbers where rows are no whole number of blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

OPERATOR = "bitsandbytes::dequantize_4bit"


@cache
def read_blocks_across_rows() -> torch.library.Library:
    """Have that kernel read such a weight as one long row, in every product of this process."""
    import bitsandbytes  # noqa: F401 - it registers the kernel

    kernel: Any = torch.library.get_kernel(OPERATOR, "CPU")

    def dequantize(
        keys: Any, codes: Tensor, scales: Tensor, block: int, kind: str, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        row = shape if shape[-1] % block == 0 else (prod(shape),)
        whole: Tensor = kernel.call_boxed(keys, codes, scales, block, kind, row, dtype)
        return whole.view(tuple(shape))

    library = torch.library.Library("bitsandbytes", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")  # that is what is meant
        library.impl(  # type: ignore[no-untyped-call]
            "dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True
        )
    return library
