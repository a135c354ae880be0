"""Weights that GPTQ and AWQ store: whole numbers of few bits, several in each int32, with scales and zeros by group.

    W[out, in] = scale[group, out] · (q[in, out] − zero[group, out])

Source: Frantar et al. 2022, GPTQ (https://arxiv.org/abs/2210.17323); Lin et al. 2023, AWQ
(https://arxiv.org/abs/2306.00978); the layouts are those of AutoGPTQ's and AutoAWQ's (GEMM) files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AutoAWQ's kernel has the eight numbers of an int32 that lie side by side in the weight."""


def numbers_in(packed: Tensor, bits: int) -> Tensor:
    """The numbers in int32s, the lowest bits first: `[…, n]` to `[…, n · 32 / bits]`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    numbers: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return numbers.flatten(-2)


def of_gptq(parts: Mapping[str, Tensor], dtype: torch.dtype, *, zeros_less_one: bool) -> Tensor:
    """The weight `[out, in]` of `qweight` `[in · bits / 32, out]`, `qzeros`, `scales` and `g_idx`, which may be any.

    Files of the first version hold each zero less one.
    """
    group_of = parts["g_idx"].long()
    bits = 32 * len(parts["qweight"]) // len(group_of)
    zeros = numbers_in(parts["qzeros"], bits)
    if zeros_less_one:
        zeros = (zeros + 1) & (2**bits - 1)
    codes = numbers_in(parts["qweight"].T, bits)
    return _weight(codes, zeros[group_of].T, parts["scales"][group_of].T, dtype)


def of_awq(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of `qweight` `[in, out / 8]`, `qzeros` and `scales`, in 4 bits."""
    codes, zeros = (
        numbers_in(parts[name], 4).view(*parts[name].shape, 8)[..., AWQ_ORDER].flatten(-2)
        for name in ("qweight", "qzeros")
    )
    group_of = torch.arange(len(codes)) * len(zeros) // len(codes)
    return _weight(codes.T, zeros[group_of].T, parts["scales"][group_of].T, dtype)


def _weight(codes: Tensor, zeros: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """All `[out, in]`."""
    return ((codes - zeros) * scales.float()).to(dtype).contiguous()
