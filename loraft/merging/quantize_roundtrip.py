"""What is left of a weight once it has been quantized."""

from __future__ import annotations

from typing import Any

import torch

from loraft.adapters.effect import Run, row_spans
from loraft.config.sections import QuantizationSection
from loraft.kernels.cpu_dequantize import read_blocks_across_rows
from loraft.kernels.packed_experts import BLOCK
from loraft.models.device import DTYPES


def quantize_roundtrip(
    weight: torch.Tensor, section: QuantizationSection, dtype: torch.dtype, *, run: Run = map
) -> torch.Tensor:
    """What is left of a weight once it has been quantized, to the bit as a quantized model computes with it on a CPU.

    A GPU may differ by the last place of the constants' mean, and halfway between two codes of FP4.
    Done piece by piece, for bitsandbytes needs 16 times a weight's memory on the CPU: only the blocks' constants are
    held whole, of which double quantization takes the mean.

    Args:
        weight: `[out, in]`, as the base has it; what comes back is so too, in the dtype of the products.
        section: How it is stored.
        dtype: The dtype that the base was loaded in, which it is cast to before it is quantized.
        run: What makes the pieces: `map`, or something like it that has several threads.

    Source: Dettmers et al. 2023, QLoRA, equation 6 (https://arxiv.org/abs/2305.14314); bitsandbytes'
    `functional.quantize_4bit` and `dequantize_4bit`.
    """
    import bitsandbytes.functional as bnb

    read_blocks_across_rows()
    if section.type == "int8":
        return _int8_roundtrip(weight, section, dtype, run)
    spans = [*row_spans(weight)] if weight.shape[1] % BLOCK == 0 else [slice(0, len(weight))]

    def quantize(span: slice) -> tuple[torch.Tensor, Any]:
        piece = weight[span].to(dtype).contiguous()
        codes, state = bnb.quantize_4bit(piece, blocksize=BLOCK, quant_type=section.type)
        return codes, state

    packed = list(run(quantize, spans))
    scales = torch.cat([state.absmax for _, state in packed])
    if section.double_quant:  # the constants are kept in 8 bits around their mean
        mean = scales.mean()
        codes, state = bnb.quantize_blockwise(scales - mean, blocksize=256)
        scales = bnb.dequantize_blockwise(codes, state) + mean
    for (_, state), part in zip(packed, torch.split(scales, [len(state.absmax) for _, state in packed]), strict=True):
        state.absmax = part
    at_row = {span.start: piece for span, piece in zip(spans, packed, strict=True)}
    result = torch.empty(weight.shape, dtype=DTYPES.get(section.compute_dtype, dtype))

    def restore(span: slice) -> None:
        result[span] = bnb.dequantize_4bit(*at_row[span.start])

    list(run(restore, spans))
    return result


def _int8_roundtrip(weight: torch.Tensor, section: QuantizationSection, dtype: torch.dtype, run: Run) -> torch.Tensor:
    """`quantize_roundtrip` in int8: each row by itself, by way of float16, as bitsandbytes does it."""
    import bitsandbytes.functional as bnb

    from loraft.kernels.linear_weights import dequantized

    result = DTYPES.get(section.compute_dtype, dtype)

    def piece(span: slice) -> torch.Tensor:
        codes, scales, _ = bnb.int8_vectorwise_quant(weight[span].to(dtype).half().contiguous())
        return dequantized(codes, scales, result)

    return torch.cat(list(run(piece, row_spans(weight))))
