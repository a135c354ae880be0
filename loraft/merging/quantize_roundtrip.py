"""What is left of a weight once it has been quantized."""

from __future__ import annotations

import torch
from torch import Tensor

from loraft.config.sections import QuantizationSection
from loraft.kernels.linear_weights import dequantized
from loraft.kernels.packed_experts import BLOCK, pack
from loraft.kernels.pieces import Run, spans
from loraft.models.device import DTYPES


def quantize_roundtrip(weight: Tensor, section: QuantizationSection, dtype: torch.dtype, *, run: Run = map) -> Tensor:
    """What is left of a weight once it has been quantized, to the bit as a quantized model computes with it on a CPU.

    A GPU may differ by the last place of the constants' mean, and halfway between two codes of FP4.
    Done piece by piece, for bitsandbytes needs 16 times a weight's memory on the CPU: only the codes and the blocks'
    constants are held whole, of which double quantization takes the mean.

    Args:
        weight: `[out, in]`, as the base has it, or of experts `[experts, …, …]`; what comes back is so too, in the
            dtype of the products.
        section: How it is stored.
        dtype: The dtype that the base was loaded in, which it is cast to before it is quantized.
        run: What makes the pieces: `map`, or something like it that has several threads.

    Source: Dettmers et al. 2023, QLoRA, equation 6 (https://arxiv.org/abs/2305.14314); bitsandbytes'
    `functional.quantize_4bit` and `dequantize_4bit`; in int8 each row by itself, by way of float16, as it does it.
    """
    import bitsandbytes.functional as bnb

    of_products = DTYPES.get(section.compute_dtype, dtype)
    if section.type == "int8":

        def rounded(rows: slice) -> Tensor:
            codes, scales, _ = bnb.int8_vectorwise_quant(weight[rows].to(dtype).half().contiguous())
            return dequantized(codes, scales, of_products)

        return torch.cat(list(run(rounded, spans(weight.shape))))
    parts = weight
    if weight.dim() == 2:  # rows by themselves, where each is a whole number of blocks
        parts = weight[:, None] if weight.shape[1] % BLOCK == 0 else weight[None]
    packed = pack(parts, section.type, double_quant=section.double_quant, dtype=dtype, run=run).with_plain_constants()
    result = torch.empty(parts.shape, dtype=of_products if weight.dim() == 2 else dtype)

    def restore(part: slice) -> None:
        result[part] = packed.value(part)

    list(run(restore, spans(parts.shape)))
    return result.view(weight.shape)
