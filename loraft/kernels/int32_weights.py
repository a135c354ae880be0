"""Weights that GPTQ and AWQ store: whole numbers of few bits, several in each int32, with scales and zeros by group.

    W[out, in] = scale[group, out] · (q[in, out] − zero[group, out])

Source: Frantar et al. 2022, GPTQ (https://arxiv.org/abs/2210.17323); Lin et al. 2023, AWQ
(https://arxiv.org/abs/2306.00978); the layouts are those of AutoGPTQ's and AutoAWQ's (GEMM) files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""Where AutoAWQ's kernel has the eight numbers of an int32 that lie side by side in the weight, in bits."""
INPUTS = 512
"""Inputs whose weights are made at once: what is made on the way then lies in a processor's cache."""


def of_gptq(parts: Mapping[str, Tensor], dtype: torch.dtype, *, zeros_less_one: bool) -> Tensor:
    """The weight `[out, in]` of `qweight` `[in · bits / 32, out]`, `qzeros`, `scales` and `g_idx`, which may be any.

    Files of the first version hold each zero less one.
    """
    group_of = parts["g_idx"].long()
    bits = 32 * len(parts["qweight"]) // len(group_of)
    shifts = range(0, 32, bits)
    zeros = numbers_in(parts["qzeros"], shifts)
    if zeros_less_one:
        zeros = (zeros + 1) & (2**bits - 1)
    codes = (numbers_in(each, shifts, dim=0) for each in torch.split(parts["qweight"], INPUTS * bits // 32))
    return _weight(codes, zeros, parts["scales"], group_of, dtype)


def of_awq(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of `qweight` `[in, out / 8]`, `qzeros` and `scales`, in 4 bits."""
    inputs, groups = len(parts["qweight"]), len(parts["qzeros"])
    codes = (numbers_in(each, AWQ_SHIFTS) for each in torch.split(parts["qweight"], INPUTS))
    group_of = torch.arange(inputs) * groups // inputs
    return _weight(codes, numbers_in(parts["qzeros"], AWQ_SHIFTS), parts["scales"], group_of, dtype)


def numbers_in(packed: Tensor, shifts: Sequence[int], dim: int = 1) -> Tensor:
    """The numbers in `[rows, columns]` of int32s, of which each becomes several along `dim`: one behind each shift."""
    places = torch.tensor(shifts, dtype=torch.int32)
    begun = packed.unsqueeze(dim + 1) >> (places[:, None] if dim == 0 else places)
    numbers: Tensor = (begun & (2 ** (32 // len(shifts)) - 1)).flatten(dim, dim + 1)
    return numbers


def _weight(codes: Iterable[Tensor], zeros: Tensor, scales: Tensor, group_of: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `[out, in]` of codes `[some of in, out]`, and of zeros and scales `[group, out]`."""
    weight = torch.empty(len(group_of), scales.shape[1], dtype=dtype)
    zeros, scales, done = zeros.float(), scales.float(), 0
    for each in codes:
        rows = slice(done, done := done + len(each))
        weight[rows] = each.float().sub_(zeros[group_of[rows]]).mul_(scales[group_of[rows]])
    return weight.T.contiguous()
